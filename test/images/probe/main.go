// Command probe is the program in the images that tests run. It is one static file and does what a shell cannot:
// it tells what it is allowed to do, prints fast, eats memory, answers on the network.
//
//	probe facts                   what this process is, as JSON; see package facts
//	probe sleep                   until SIGTERM, then exits with 0
//	probe trap                    prints each signal it gets; ends at SIGUSR2
//	probe spam N SIZE [PAUSE]     N numbered lines of SIZE bytes, with a pause ("1ms") after each
//	probe eat MIB                 touches that much memory, then sleeps
//	probe fork N                  starts N processes that sleep and hold its standard output, then sleeps itself
//	probe try WHAT                one system call; prints "ok" or the name of the error
//	probe serve PORT              echoes what TCP clients send
//	probe ask HOST:PORT TEXT      sends text to such a server and prints the answer
//	probe sizes                   prints the terminal's size now and after each change
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

var commands = map[string]func(args []string) error{
	"facts": tell, "sleep": sleep, "trap": trap, "spam": spam, "eat": eat, "fork": fork, "try": try,
	"serve": serve, "ask": ask, "sizes": sizes,
}

func main() {
	if len(os.Args) < 2 || commands[os.Args[1]] == nil {
		fmt.Fprintln(os.Stderr, "probe: unknown command; see its source")
		os.Exit(2)
	}
	if err := commands[os.Args[1]](os.Args[2:]); err != nil {
		fmt.Fprintln(os.Stderr, "probe:", err)
		os.Exit(1)
	}
}

// arg is the i-th argument, or fallback if there are fewer.
func arg(args []string, i int, fallback string) string {
	if i < len(args) {
		return args[i]
	}
	return fallback
}

func tell([]string) error { return json.NewEncoder(os.Stdout).Encode(collect()) }

func sleep([]string) error {
	term := make(chan os.Signal, 1)
	signal.Notify(term, syscall.SIGTERM)
	<-term
	return nil
}

func trap([]string) error {
	all := make(chan os.Signal, 100)
	signal.Notify(all)
	fmt.Println("ready")
	for s := range all {
		if s == syscall.SIGURG { // the Go runtime's own
			continue
		}
		fmt.Println(unix.SignalName(s.(syscall.Signal)))
		if s == syscall.SIGUSR2 {
			return nil
		}
	}
	return nil
}

func spam(args []string) error {
	n, err := strconv.Atoi(arg(args, 0, "1000"))
	if err != nil {
		return err
	}
	size, err := strconv.Atoi(arg(args, 1, "100"))
	if err != nil {
		return err
	}
	pause, err := time.ParseDuration(arg(args, 2, "0s"))
	if err != nil {
		return err
	}
	out := bufio.NewWriterSize(os.Stdout, 32<<10)
	padding := strings.Repeat("x", size)
	for i := range n {
		line := fmt.Sprintf("%09d ", i) + padding
		if _, err := out.WriteString(line[:size-1] + "\n"); err != nil {
			return err
		}
		if pause > 0 {
			if err := out.Flush(); err != nil {
				return err
			}
			time.Sleep(pause)
		}
	}
	return out.Flush()
}

func eat(args []string) error {
	mib, err := strconv.Atoi(arg(args, 0, "1"))
	if err != nil {
		return err
	}
	var held [][]byte
	for range mib {
		page := make([]byte, 1<<20)
		for i := 0; i < len(page); i += 4096 {
			page[i] = 1
		}
		held = append(held, page)
	}
	fmt.Println("ate", len(held))
	return sleep(nil)
}

func fork(args []string) error {
	n, err := strconv.Atoi(arg(args, 0, "1"))
	if err != nil {
		return err
	}
	for range n {
		cmd := exec.Command("/proc/self/exe", "trap")
		cmd.Stdout = os.Stdout
		if err := cmd.Start(); err != nil {
			return err
		}
	}
	return sleep(nil)
}

func try(args []string) error {
	calls := map[string]func() error{
		"mount":    func() error { return unix.Mount("tmpfs", "/tmp", "tmpfs", 0, "") },
		"unshare":  func() error { return unix.Unshare(unix.CLONE_NEWUTS) },
		"hostname": func() error { return unix.Sethostname([]byte("changed")) },
		"mknod":    func() error { return unix.Mknod("/tmp/null", unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))) },
		"chown":    func() error { return unix.Chown("/tmp", 1, 1) },
		"settime":  func() error { return unix.Settimeofday(&unix.Timeval{}) },
		"keyctl":   func() error { _, err := unix.KeyctlGetKeyringID(unix.KEY_SPEC_SESSION_KEYRING, false); return err },
		"bpf":      func() error { _, _, e := unix.Syscall(unix.SYS_BPF, 99, 0, 0); return e },
		"ptrace":   func() error { return unix.PtraceAttach(1) },
		"mkdir":    func() error { return unix.Mkdir("/tmp/made", 0o755) },
		"raw":      func() error { return closing(unix.Socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP)) },
	}
	call := calls[arg(args, 0, "")]
	if call == nil {
		return fmt.Errorf("no such call: %q", args)
	}
	err := call()
	if errno, ok := err.(syscall.Errno); ok && errno != 0 {
		fmt.Println(unix.ErrnoName(errno))
		return nil
	}
	fmt.Println("ok")
	return nil
}

func closing(fd int, err error) error {
	if err != nil {
		return err
	}
	return unix.Close(fd)
}

func serve(args []string) error {
	l, err := net.Listen("tcp", ":"+arg(args, 0, "80"))
	if err != nil {
		return err
	}
	fmt.Println("listening")
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer c.Close()
			_, _ = io.Copy(c, c) // the client went away
		}()
	}
}

func ask(args []string) error {
	c, err := net.DialTimeout("tcp", arg(args, 0, ""), 5*time.Second)
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := io.WriteString(c, arg(args, 1, "")); err != nil {
		return err
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		return err
	}
	_, err = io.Copy(os.Stdout, c)
	return err
}

func sizes([]string) error {
	changed := make(chan os.Signal, 10)
	signal.Notify(changed, syscall.SIGWINCH)
	for {
		w, err := unix.IoctlGetWinsize(0, unix.TIOCGWINSZ)
		if err != nil {
			return err
		}
		fmt.Printf("%dx%d\n", w.Col, w.Row)
		<-changed
	}
}
