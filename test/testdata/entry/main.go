// Command entry is the only program of an image: it says how it was called, and exits with the code in EXIT.
package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

func main() {
	dir, err := os.Getwd()
	if err != nil {
		dir = err.Error()
	}
	fmt.Printf("%s in %s as %d\n", strings.Join(os.Args[1:], "|"), dir, os.Getuid())
	code, _ := strconv.Atoi(os.Getenv("EXIT"))
	os.Exit(code)
}
