// Command banger-agent is PID 1 of a banger guest. It runs from the initramfs, makes the guest's devices available and
// then waits for the host to tell it which VM this is. As any other process it is one of the agent's tools.
//
// Whatever goes wrong is said on the console and ends the machine: a guest without its agent is of no use, and its end
// is what the host sees.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"time"

	"banger/internal/agent"
	"banger/internal/agent/machine"
	"banger/internal/agent/tool"
)

// Pauses before the channel is opened again. Without a host it reports its end at once, again and again.
const (
	firstPause = 5 * time.Millisecond
	lastPause  = 200 * time.Millisecond
	longEnough = time.Second // a session of that length was one
)

func main() {
	if os.Getpid() != 1 {
		os.Exit(tool.Main(os.Args[1:], os.Stdout, os.Stderr))
	}
	m := machine.New()
	defer m.Reset()
	defer func() {
		if v := recover(); v != nil {
			m.Error(fmt.Sprintf("panic: %v\n%s", v, debug.Stack()))
		}
	}()
	m.Error("the agent ended: " + run(m).Error())
}

// run boots the machine and serves the host. It returns only when it cannot go on.
func run(m *machine.Machine) error {
	if err := m.Boot(); err != nil {
		return err
	}
	go m.ServeSignals()
	server := agent.NewServer(agent.Config{System: m, Build: build(), Init: true, Ended: m.Settle, Log: m.Error})
	ctx := context.Background()
	pause := firstPause
	for {
		port, err := m.OpenChannel(ctx)
		if err != nil {
			return err
		}
		began := time.Now()
		err = server.Serve(ctx, port)
		if time.Since(began) > longEnough {
			pause = firstPause
		}
		if err != nil && !errors.Is(err, io.EOF) {
			m.Log("session ended: " + err.Error())
		}
		time.Sleep(pause)
		pause = min(2*pause, lastPause)
	}
}

// build says which source the agent was built from.
func build() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			return s.Value
		}
	}
	return info.Main.Version
}
