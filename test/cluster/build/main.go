// Command build builds the programs of a cluster, unless they are there, and prints where.
package main

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/orlop/orlop/test/cluster"
)

func main() {
	bin, err := cluster.Build()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(filepath.Dir(bin.APIServer))
}
