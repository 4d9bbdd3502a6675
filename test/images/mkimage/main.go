// Command mkimage makes the images of tests and of the demo and writes them as OCI layouts:
//
//	go run ./test/images/mkimage -o DIR nginx          DIR is the layout
//	go run ./test/images/mkimage -o DIR probe nginx    DIR has a layout for each
//	go run ./test/images/mkimage -o DIR all
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/orlop/orlop/test/images"
)

func main() {
	out := flag.String("o", "", "`directory` to write to")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *out, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "mkimage:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, out string, names []string) error {
	if out == "" || len(names) == 0 {
		return fmt.Errorf("usage: mkimage -o DIR NAME...; the names are %q, or all", images.Names())
	}
	several := len(names) > 1 || names[0] == "all"
	if names[0] == "all" {
		names = images.Names()
	}
	for _, name := range names {
		start := time.Now()
		fmt.Fprintf(os.Stderr, "image %s: ", name)
		img, err := images.Get(ctx, name)
		if err != nil {
			fmt.Fprintln(os.Stderr)
			return err
		}
		dir := out
		if several {
			dir = filepath.Join(out, name)
		}
		if err := img.Save(dir, name); err != nil {
			return err
		}
		fmt.Fprintf(os.Stderr, "%.0f MB packed, in %s after %.1f s\n", float64(img.Size())/1e6, dir, time.Since(start).Seconds())
	}
	return nil
}
