// Command probe is the one program of the images that the tests of package machine make: it says how it was started and
// does what a small image has no program for.
package main

import (
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "probe:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	switch args[0] {
	case "id":
		dir, err := os.Getwd()
		groups, _ := os.Getgroups()
		fmt.Printf("%d:%d %v %s HOME=%s PATH=%s\n", os.Getuid(), os.Getgid(), groups, dir, os.Getenv("HOME"), os.Getenv("PATH"))
		return err
	case "exit":
		code, err := strconv.Atoi(args[1])
		if err == nil {
			os.Exit(code)
		}
		return err
	case "cat":
		data, err := os.ReadFile(args[1])
		_, _ = os.Stdout.Write(data)
		return err
	case "ls":
		entries, err := os.ReadDir(args[1])
		var names []string
		for _, e := range entries {
			names = append(names, e.Name())
		}
		fmt.Println(strings.Join(names, " "))
		return err
	case "write": // without making the file, as a program does that logs to /dev/stdout
		f, err := os.OpenFile(args[1], os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		_, err = io.WriteString(f, args[2])
		return err
	case "put":
		return os.WriteFile(args[1], []byte(args[2]), 0o644)
	case "mkdir":
		return os.Mkdir(args[1], 0o755)
	case "rm":
		return os.Remove(args[1])
	case "setxattr":
		value, err := strconv.Unquote(args[3])
		if err != nil {
			return err
		}
		return unix.Lsetxattr(args[1], args[2], []byte(value), 0)
	case "socket":
		listener, err := net.Listen("unix", args[1])
		if err != nil {
			return err
		}
		listener.(*net.UnixListener).SetUnlinkOnClose(false)
		return listener.Close()
	}
	return fmt.Errorf("no command %q", args[0])
}
