package main

func stress([]string) bool { return true }
func soak([]string) bool   { return true }
