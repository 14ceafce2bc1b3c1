// Package kvm decides whether Linux's KVM can run a stock guest on this host, without starting one.
//
// That /dev/kvm opens and answers is not proof. A host that is itself a paravirtual guest (module kvm_pvm) offers the
// whole interface, but stock guests die in it or crawl until an "emulation failure", since every instruction of theirs
// is emulated. So the processor's own extensions and the module that drives them must be there too.
package kvm

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// apiVersion is the only version of the KVM interface that ever was (Linux, Documentation/virt/kvm/api.rst).
const apiVersion = 12

// getAPIVersion is KVM_GET_API_VERSION: _IO(0xAE, 0x00).
const getAPIVersion = 0xAE00

// Status is what was found.
type Status struct {
	Usable bool
	Reason string // a clause for people: "/dev/kvm is usable (kvm_intel)", "there is no /dev/kvm"
	Hint   string // a command that makes KVM usable; empty when none is known
}

// Host is where to look. The zero value is the real one; tests give other values.
type Host struct {
	Root string // stands before /dev, /proc, /sys
	Arch string // runtime.GOARCH
	// Version opens the device and returns KVM_GET_API_VERSION.
	Version func(device string) (int, error)
}

// Look decides. It takes well under a millisecond.
func (h Host) Look() Status {
	if h.Arch == "" {
		h.Arch = runtime.GOARCH
	}
	if h.Version == nil {
		h.Version = version
	}
	got, err := h.Version(filepath.Join(h.Root, "/dev/kvm"))
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		return h.missing()
	case errors.Is(err, fs.ErrPermission):
		// Permission for a device that would not help is no advice.
		if behind := h.processor(); !behind.Usable {
			return behind
		}
		return Status{Reason: "no permission to open /dev/kvm", Hint: "sudo usermod -aG kvm \"$USER\" && newgrp kvm"}
	case err != nil:
		return Status{Reason: fmt.Sprintf("/dev/kvm does not work: %v", err)}
	case got != apiVersion:
		return Status{Reason: fmt.Sprintf("/dev/kvm speaks version %d of the KVM interface, not %d", got, apiVersion)}
	}
	return h.processor()
}

// missing explains why there is no device.
func (h Host) missing() Status {
	if h.Arch != "amd64" {
		return Status{Reason: "there is no /dev/kvm"}
	}
	switch h.extension() {
	case "vmx":
		return Status{Reason: "there is no /dev/kvm, although the processor has VT-x", Hint: "sudo modprobe kvm_intel"}
	case "svm":
		return Status{Reason: "there is no /dev/kvm, although the processor has AMD-V", Hint: "sudo modprobe kvm_amd"}
	}
	return Status{Reason: "there is no /dev/kvm: the processor does not offer virtualisation (it is switched off in the " +
		"firmware, or this host is a virtual machine without nesting)"}
}

// processor looks behind a device that answers.
func (h Host) processor() Status {
	if h.Arch != "amd64" { // other architectures have no such trap
		return Status{Usable: true, Reason: "/dev/kvm is usable"}
	}
	switch {
	case h.module("kvm_pvm"):
		return Status{Reason: "/dev/kvm is driven by kvm_pvm, which cannot run a stock guest: this host is itself a " +
			"paravirtual guest"}
	case h.extension() == "":
		return Status{Reason: "there is a /dev/kvm, but the processor offers neither VT-x (vmx) nor AMD-V (svm)"}
	case h.module("kvm_intel"):
		return Status{Usable: true, Reason: "/dev/kvm is usable (kvm_intel)"}
	case h.module("kvm_amd"):
		return Status{Usable: true, Reason: "/dev/kvm is usable (kvm_amd)"}
	case !h.exists("/sys/module"): // a container without /sys: the processor's word has to do
		return Status{Usable: true, Reason: "/dev/kvm is usable"}
	}
	return Status{Reason: "there is a /dev/kvm, but neither kvm_intel nor kvm_amd drives it"}
}

// module reports whether that kernel module is loaded or built in.
func (h Host) module(name string) bool { return h.exists("/sys/module/" + name) }

func (h Host) exists(path string) bool {
	_, err := os.Stat(filepath.Join(h.Root, path))
	return err == nil
}

// extension returns the processor's virtualisation flag, "vmx" or "svm", or "".
func (h Host) extension() string {
	info, err := os.ReadFile(filepath.Join(h.Root, "/proc/cpuinfo"))
	if err != nil {
		return ""
	}
	lines := bufio.NewScanner(bytes.NewReader(info))
	for lines.Scan() {
		name, flags, _ := strings.Cut(lines.Text(), ":")
		if strings.TrimSpace(name) != "flags" {
			continue
		}
		for _, flag := range []string{"vmx", "svm"} {
			if slices.Contains(strings.Fields(flags), flag) {
				return flag
			}
		}
		return "" // every processor of a host has the same
	}
	return ""
}

func version(device string) (int, error) {
	fd, err := unix.Open(device, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	return unix.IoctlRetInt(fd, getAPIVersion)
}
