//go:build linux

package main

import (
	"fmt"
	"os"
	"path/filepath"
)

// A cgroup is the directory of a cgroup with one limit.
type cgroup string

// newCgroup returns an error where this program may not make one. It knows both versions of
// cgroups, which differ in the names of files.
func newCgroup(controller string, limit int) (cgroup, error) {
	const root = "/sys/fs/cgroup"
	parent, file := filepath.Join(root, controller), map[string]string{
		"cpu": "cpu.cfs_quota_us", "memory": "memory.limit_in_bytes"}[controller]
	if exists(root + "/cgroup.controllers") {
		parent, file = root, controller+".max"
		os.WriteFile(root+"/cgroup.subtree_control", []byte("+cpu +memory"), 0)
	}
	group := filepath.Join(parent, fmt.Sprint("measure-", os.Getpid()))
	if err := os.Mkdir(group, 0o755); err != nil {
		return "", err
	}
	err := os.WriteFile(filepath.Join(group, file), fmt.Append(nil, limit), 0)
	return cgroup(group), err
}

// command is a command executed in the cgroup.
func (g cgroup) command(command ...string) []string {
	return append([]string{"sh", "-c", `echo $$ > "$0/cgroup.procs" && exec "$@"`, string(g)}, command...)
}

// peak is the most memory that the cgroup had at a time, in MiB. The kernel's buffers are in it.
func (g cgroup) peak() int64 {
	for _, file := range []string{"memory.peak", "memory.max_usage_in_bytes"} {
		if exists(string(g) + "/" + file) {
			return number(string(g)+"/"+file, "") >> 20
		}
	}
	return 0
}

// remove is for when its processes have ended.
func (g cgroup) remove() { os.Remove(string(g)) }

func exists(file string) bool {
	_, err := os.Stat(file)
	return err == nil
}
