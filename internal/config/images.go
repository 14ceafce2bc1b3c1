package config

import (
	"regexp"
	"slices"
	"strings"

	"banger/internal/fault"
	"banger/internal/image/webcatalog"
	"banger/internal/signature"
)

// catalogHelp ends a new file: an array of tables cannot be commented out in the way of the settings.
const catalogHelp = `
# Catalogs of images besides banger's own, asked in this order (docs/bundle.md). One table for each:
#   [[catalog]]
#   name = "acme"                                # its images are called acme/NAME, and NAME where that is free
#   url = "https://images.example/catalog.json"
#   key = "RW..."                                # minisign public key that it is signed with
`

// applyImages takes over and checks what is about images. refuse makes the fault for a key.
func (c *Config) applyImages(f *file, refuse func(err error, key ...string) error) error {
	set(&c.Limits.ImageEntries, f.Limits.ImageEntries)
	c.Trust.Keys = append(c.Trust.Keys, f.Trust.Keys...) // an empty list is as none
	c.Registry.Insecure = append(c.Registry.Insecure, f.Registry.Insecure...)
	if err := setSize(&c.Limits.ImageSize, f.Limits.ImageSize, leastSize); err != nil {
		return refuse(err, "limits", "image_size")
	}
	if err := setSize(&c.Limits.DownloadSize, f.Limits.DownloadSize, leastSize); err != nil {
		return refuse(err, "limits", "download_size")
	}
	if n := max(c.Limits.ImageSize, c.Limits.DownloadSize); n > mostSize {
		key := "image_size"
		if n != c.Limits.ImageSize {
			key = "download_size"
		}
		return refuse(fault.New(fault.Invalid, "%s is more than the most that works, %s", size(n), size(mostSize)), "limits", key)
	}
	if n := c.Limits.ImageEntries; n < 1 || n > mostEntries {
		return refuse(fault.New(fault.Invalid, "%d is not between 1 and %d", n, mostEntries), "limits", "image_entries")
	}
	if _, err := signature.ParseKeys(c.Trust.Keys); err != nil {
		return refuse(err, "trust", "keys")
	}
	host := regexp.MustCompile(`^([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?$`)
	for _, name := range c.Registry.Insecure {
		if !host.MatchString(name) {
			return refuse(fault.New(fault.Invalid, "%q is not a host, or a host and a port", name), "registry", "insecure")
		}
	}
	return nil
}

// applyCatalogs takes the catalogs over.
func (c *Config) applyCatalogs(path, text string, f *file) error {
	for i, t := range f.Catalogs {
		catalog := webcatalog.Config{Name: t.Name, URL: t.URL, Key: t.Key}
		if err := c.checkCatalog(catalog); err != nil {
			return fault.Wrap(fault.Invalid, err, "%s line %d", path, catalogLine(text, i)).WithHint("${EDITOR:-vi} %s", path)
		}
		c.Catalogs = append(c.Catalogs, catalog)
	}
	return nil
}

// checkCatalog checks one that comes behind those that c has.
func (c *Config) checkCatalog(catalog webcatalog.Config) error {
	for _, field := range [][2]string{{"name", catalog.Name}, {"url", catalog.URL}, {"key", catalog.Key}} {
		if field[1] == "" {
			return fault.New(fault.Invalid, "a catalog needs a name, a url and a key: its %s is missing", field[0])
		}
	}
	if slices.ContainsFunc(c.Catalogs, func(other webcatalog.Config) bool { return other.Name == catalog.Name }) {
		return fault.New(fault.Invalid, "there are two catalogs called %s", catalog.Name)
	}
	return catalog.Check()
}

// catalogLine is the line where the table of the catalog with that number, from 0, begins.
func catalogLine(text string, number int) int {
	header := regexp.MustCompile(`^\s*\[\[\s*"?catalog"?\s*\]\]`)
	for i, line := range strings.Split(text, "\n") {
		if header.MatchString(line) {
			if number == 0 {
				return i + 1
			}
			number--
		}
	}
	return lineOf(text, []string{"catalog"}) // written as an inline array
}

// showCatalogs is a line of Show for each catalog.
func showCatalogs(c *Config, text string) []Setting {
	var all []Setting
	for i, catalog := range c.Catalogs {
		all = append(all, Setting{
			Key: "catalog." + catalog.Name, Value: catalog.URL + " " + catalog.Key, Line: catalogLine(text, i),
			Comment: "a catalog of images: where it is, and the key that it is signed with",
		})
	}
	return all
}
