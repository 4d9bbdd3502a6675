package filter

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"

	mobyseccomp "github.com/moby/profiles/seccomp"
	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runc/libcontainer/seccomp"
	"github.com/opencontainers/runc/libcontainer/specconv"
	rspec "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// TestMain is also the child that a profile is loaded in.
func TestMain(m *testing.M) {
	if text, ok := os.LookupEnv("PROFILE"); ok {
		fmt.Println(confined(text))
		return
	}
	os.Exit(m.Run())
}

// confined loads a profile and tells what became of some system calls.
func confined(text string) string {
	Adopt()
	var profile configs.Seccomp
	if err := json.Unmarshal([]byte(text), &profile); err != nil {
		return err.Error()
	}
	if flags, err := unix.FcntlInt(given, unix.F_GETFD, 0); err == nil && flags&unix.FD_CLOEXEC == 0 {
		return "the file would be open in the program"
	}
	if _, err := seccomp.InitSeccomp(&profile); err != nil {
		return err.Error()
	}
	_, _, mkdir := unix.RawSyscall(unix.SYS_MKDIRAT, ^uintptr(0), 0, 0)
	_, _, zero := unix.RawSyscall(unix.SYS_PERSONALITY, 0, 0, 0)
	_, _, other := unix.RawSyscall(unix.SYS_PERSONALITY, 0xffffffff, 0, 0)
	_, _, unknown := unix.RawSyscall(4000, 0, 0, 0)
	return fmt.Sprintf("mkdirat %d personality %d %d unknown %d", mkdir, zero, other, unknown)
}

// profileOf allows what the default profile does, and makes an exception of one system call. It has some 400 rules,
// some of them with arguments, for two architectures.
func profileOf(t testing.TB, denied string) *configs.Seccomp {
	t.Helper()
	spec, err := mobyseccomp.GetDefaultProfile(&rspec.Spec{Process: &rspec.Process{Capabilities: &rspec.LinuxCapabilities{}}})
	if err != nil {
		t.Fatal(err)
	}
	profile, err := specconv.SetupSeccomp(spec)
	if err != nil {
		t.Fatal(err)
	}
	var kept []*configs.Syscall
	for _, call := range profile.Syscalls {
		if call.Name != denied {
			kept = append(kept, call)
		}
	}
	profile.Syscalls = kept
	return profile
}

// run loads profile in a child that is given a file, or none.
func run(t testing.TB, profile *configs.Seccomp, file *os.File) string {
	t.Helper()
	text, err := json.Marshal(profile)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = []string{"PROFILE=" + string(text)}
	cmd.Stderr = os.Stderr
	if file != nil {
		cmd.ExtraFiles = []*os.File{file}
	}
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return strings.TrimSpace(string(out))
}

func file(t testing.TB, profile *configs.Seccomp) *os.File {
	t.Helper()
	var c Cache
	f, err := c.File(profile)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// What a filter does is what libseccomp says, whatever file the child is given.
func TestFilesChangeNothing(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("a filter is loaded without no_new_privs, which only root may")
	}
	all, noMkdir := profileOf(t, ""), profileOf(t, "mkdirat")
	for _, tt := range []struct {
		name    string
		profile *configs.Seccomp
		want    string
	}{
		{"the default profile", all, "mkdirat 14 personality 0 0 unknown 38"}, // EFAULT, ENOSYS
		{"one call less", noMkdir, "mkdirat 1 personality 0 0 unknown 38"},    // EPERM
		{"less with arguments", profileOf(t, "personality"), "mkdirat 14 personality 1 1 unknown 38"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for given, f := range map[string]*os.File{
				"no file": nil, "its own": file(t, tt.profile), "of another": file(t, profileOf(t, "read")),
				"no filter": sealed(t, []byte("orlopbpf")), "a short one": sealed(t, make([]byte, 3)),
			} {
				if got := run(t, tt.profile, f); got != tt.want {
					t.Errorf("%s: %s, want %s", given, got, tt.want)
				}
			}
		})
	}
}

// The child does not compile what it is given: it loads the program that is in the file.
func TestFileIsUsed(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("a filter is loaded without no_new_privs, which only root may")
	}
	all, noMkdir := profileOf(t, ""), profileOf(t, "mkdirat")
	told, _ := parts(t, file(t, all))
	_, program := parts(t, file(t, noMkdir))
	mixed := sealed(t, append(told, program...))
	if got, want := run(t, all, mixed), "mkdirat 1 personality 0 0 unknown 38"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	f := file(t, all)
	if err := f.Truncate(0); !errors.Is(err, unix.EPERM) {
		t.Errorf("truncate: %v, want EPERM", err)
	}
}

// parts are what libseccomp was told, and the program.
func parts(t *testing.T, f *os.File) (told, program []byte) {
	t.Helper()
	data, err := io.ReadAll(io.NewSectionReader(f, 0, 1<<20))
	if err != nil {
		t.Fatal(err)
	}
	const head, call = 16, 160
	end := head + call*(int(data[8])+int(data[9])<<8)
	return data[:end:end], data[end:]
}

func sealed(t *testing.T, data []byte) *os.File {
	t.Helper()
	fd, err := unix.MemfdCreate("test", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "test")
	t.Cleanup(func() { f.Close() })
	if _, err := f.Write(data); err != nil {
		t.Fatal(err)
	}
	if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, seals); err != nil {
		t.Fatal(err)
	}
	return f
}

func TestCache(t *testing.T) {
	var c Cache
	if f, err := c.File(&configs.Seccomp{DefaultAction: 99}); err == nil {
		f.Close()
		t.Error("a profile that can't be compiled was")
	}
	// More than are kept, twice: those that had to go are made again.
	for range 2 {
		for i := range most + 2 {
			errno := uint(i + 1)
			f, err := c.File(&configs.Seccomp{DefaultAction: configs.Allow, Syscalls: []*configs.Syscall{
				{Name: "mkdirat", Action: configs.Errno, ErrnoRet: &errno},
			}})
			if err != nil {
				t.Fatal(err)
			}
			f.Close()
		}
	}
	if len(c.files) != most || len(c.oldest) != most {
		t.Errorf("%d files, %d in order, want %d", len(c.files), len(c.oldest), most)
	}
	for _, f := range c.files {
		f.Close()
	}
}

func BenchmarkFile(b *testing.B) {
	var c Cache
	profile := profileOf(b, "")
	for b.Loop() {
		f, err := c.File(profile)
		if err != nil {
			b.Fatal(err)
		}
		f.Close()
	}
}

// BenchmarkChild is a process that loads the default profile, with and without the file.
func BenchmarkChild(b *testing.B) {
	profile := profileOf(b, "")
	for name, f := range map[string]*os.File{"compiling": nil, "given": file(b, profile)} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				run(b, profile, f)
			}
		})
	}
}
