//go:build linux

// Measure builds the service and drives it from outside, through its environment, HTTP,
// signals and /proc. From the root of the repository:
//
//	go run ./measure bench [quick] [BINARY...]   what it costs, beside other ways to do the job
//	go run ./measure stress [SCENARIO...]        whether it keeps its promises under load and faults
//	go run ./measure soak [DURATION]             whether it needs more and more of anything
//
// The other servers that a measurement needs are this program again, each in a process of its own.
// With CGO_ENABLED=1 GOFLAGS=-race a service that has a data race fails the scenarios of stress.
package main

import (
	"fmt"
	"log"
	"os"
	"os/exec"
	"path/filepath"
)

// service is the path of the service's binary, and dir a directory for files of one run.
var service, dir string

func main() {
	log.SetFlags(0)
	programs := map[string]func(args []string) (ok bool){"bench": bench, "stress": stress, "soak": soak}
	peers := map[string]func(){"wechat": fakeWeChat, "lean": leanLoop, "tutorial": tutorial}
	args := append(os.Args[1:], "")
	if peer := peers[args[0]]; peer != nil {
		peer()
	}
	program := programs[args[0]]
	if program == nil {
		log.Fatal("usage: go run ./measure bench [quick] [BINARY...] | stress [SCENARIO...] | soak [DURATION]")
	}
	var err error
	dir, err = os.MkdirTemp("", "measure")
	check(err)
	check(os.Setenv("SSL_CERT_FILE", filepath.Join(dir, "wechat.pem"))) // see fakeWeChat
	service = filepath.Join(dir, "wxopenid")
	check(build(".", service))
	ok := program(os.Args[2:])
	os.RemoveAll(dir)
	if !ok {
		os.Exit(1)
	}
}

// build builds the package in a directory as `make build` does. Set GOFLAGS for other builds.
func build(directory, binary string) error {
	cmd := exec.Command("go", "build", "-C", directory, "-trimpath", "-ldflags=-s -w", "-o", binary, ".")
	cmd.Env = append([]string{"CGO_ENABLED=0"}, os.Environ()...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%v: %v\n%s", cmd, err, out)
	}
	return nil
}

// check ends the program if something fails that should not. Its processes end with it.
func check(err error) {
	if err != nil {
		log.Output(2, fmt.Sprint("measure: ", err))
		os.Exit(1)
	}
}
