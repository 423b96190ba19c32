//go:build linux

package main

func soak([]string) bool { return true }
