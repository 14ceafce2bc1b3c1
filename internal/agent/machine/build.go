package machine

import (
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"banger/internal/agentwire"
	"banger/internal/fault"
)

// A guest of Config.Build must find its own things in the root and leave no trace of them in the image that is made of
// its changes. A mount hides what it is mounted on and changes nothing; only, the image need not have a place for it.
// So a third layer lies below the image, which shows where the image has nothing, and holds the missing mount points.
// Nothing that is in it is ever in the upper layer, unless a command changes it.
//
// What is not mounted is as it would be for `docker build`, which lets a command write to /run and /tmp like anywhere
// else, and gives it an /etc/machine-id only if the image has one: scripts that make images like to remove that file,
// which a mount would not let them.
const (
	buildDir = "/banger/build" // a tmpfs
	stubsDir = buildDir + "/stubs"
	filesDir = "files" // below buildDir
)

// buildFilesSize is how much may be written to the files that are mounted over the image's.
const buildFilesSize = "4m"

// buildFile is a file that is mounted over the image's.
type buildFile struct {
	name    string // in /etc, and in filesDir
	content string
}

// buildFiles is what depends on the VM. What the image has in /etc/hosts stays.
func buildFiles(config agentwire.Config, oldHosts string) []buildFile {
	files := []buildFile{
		{"hostname", config.Hostname + "\n"},
		{"hosts", hosts(oldHosts, config.Hostname)},
	}
	if config.Network != nil && len(config.Network.DNS) > 0 {
		files = append(files, buildFile{"resolv.conf", resolvConf(config.Network)})
	}
	return files
}

// prepareBuild makes the lowest layer and the files to mount. It is called when the image is mounted and the root is
// not yet.
func (m *Machine) prepareBuild(config agentwire.Config) error {
	if err := os.MkdirAll(buildDir, 0o755); err != nil {
		return err
	}
	err := unix.Mount("tmpfs", buildDir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755,size="+buildFilesSize)
	if err != nil {
		return fault.Wrap(mountClass(err), err, "mount tmpfs on %s", buildDir)
	}
	if m.build, err = openDir(buildDir); err != nil {
		return err
	}
	for _, dir := range []string{stubsDir, buildDir + "/" + filesDir} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
	}
	for _, mnt := range bootMounts() {
		if err := stub(mnt.target, true); err != nil {
			return err
		}
	}
	if err := stubModules(); err != nil {
		m.Error("no place for the kernel's modules: " + err.Error())
	}
	old := ""
	if real, err := resolve(lowerDir, "/etc/hosts"); err == nil {
		old, _ = readSmall(lowerDir + real) // none is as good as an empty one
	}
	for _, f := range buildFiles(config, old) {
		err := os.WriteFile(filepath.Join(buildDir, filesDir, f.name), []byte(f.content), 0o644)
		if err == nil {
			err = stub("/etc/"+f.name, false)
		}
		if err != nil {
			m.Error("no place for /etc/" + f.name + ": " + err.Error())
		}
	}
	return nil
}

// stub puts a mount point into the lowest layer if the image has none at that path.
func stub(path string, dir bool) error {
	real, err := resolve(lowerDir, path)
	if err != nil {
		return err
	}
	if info, err := os.Lstat(lowerDir + real); err == nil {
		if info.IsDir() != dir {
			return fault.New(fault.Invalid, "in the image %s is a %s", path, kindOf(info))
		}
		return nil
	}
	if dir {
		return os.MkdirAll(stubsDir+real, 0o755)
	}
	if err := os.MkdirAll(filepath.Dir(stubsDir+real), 0o755); err != nil {
		return err
	}
	return os.WriteFile(stubsDir+real, nil, 0o644)
}

// kindOf says what stands where something else is needed.
func kindOf(info os.FileInfo) string {
	if info.IsDir() {
		return "directory"
	}
	return "file"
}

// stubModules makes the place for the kernel's modules if the image can load any. Elsewhere, as in a container, there is
// none: a command that makes /lib must find that there is none.
func stubModules() error {
	modprobe, err := resolve(lowerDir, "/sbin/modprobe")
	if err != nil {
		return nil //nolint:nilerr // no way there is no modprobe
	}
	lib, err := resolve(lowerDir, "/lib")
	if err != nil {
		return nil //nolint:nilerr // nor is no way to /lib one to modules
	}
	if _, err := os.Lstat(lowerDir + modprobe); err != nil || !isDir(lowerDir+lib) {
		return nil
	}
	name, err := release()
	if err != nil {
		return err
	}
	return stub("/lib/modules/"+name, true)
}

// mountBuildFiles mounts the files over the image's. One that has no place is missing, which was said when the place
// was to be made.
func (m *Machine) mountBuildFiles(config agentwire.Config) {
	for _, f := range buildFiles(config, "") {
		if err := bind(m.build, filesDir+"/"+f.name, "/etc/"+f.name); err != nil {
			m.Error(err.Error())
		}
	}
}
