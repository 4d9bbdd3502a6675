package user

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/orlop/orlop/oci/spec"
)

const (
	passwd = "root:x:0:0:root:/root:/bin/sh\nweb:x:33:34::/srv/web:/bin/false\n1234:x:0:0::/root:/bin/sh\nodd:x:77:78::relative:/bin/sh\n"
	group  = "root:x:0:\nweb:x:34:\nextra:x:1000:web,odd\nmore:x:1001:web\n1234:x:0:\n"
)

func rootfs(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{"passwd": passwd, "group": group} {
		if err := os.MkdirAll(filepath.Join(dir, "etc"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "etc", name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestResolve(t *testing.T) {
	id := func(n int64) *int64 { return &n }
	for _, tt := range []struct {
		name string
		in   Request
		want spec.User
		bad  bool
	}{
		{name: "nothing is root", want: spec.User{Name: "root", Home: "/root", AdditionalGIDs: []uint32{0}}},
		{name: "image name", in: Request{Image: "web"}, want: spec.User{UID: 33, GID: 34, Name: "web", Home: "/srv/web", AdditionalGIDs: []uint32{34, 1000, 1001}}},
		{name: "image name and group name", in: Request{Image: "web:extra"}, want: spec.User{UID: 33, GID: 1000, Name: "web", Home: "/srv/web", AdditionalGIDs: []uint32{1000, 1001}}},
		{name: "image numbers without entry", in: Request{Image: "9:8"}, want: spec.User{UID: 9, GID: 8, Home: "/", AdditionalGIDs: []uint32{8}}},
		{name: "number with entry", in: Request{UID: id(33)}, want: spec.User{UID: 33, GID: 34, Name: "web", Home: "/srv/web", AdditionalGIDs: []uint32{34, 1000, 1001}}},
		{name: "request wins over image", in: Request{UID: id(5), Image: "web:extra"}, want: spec.User{UID: 5, Home: "/", AdditionalGIDs: []uint32{0}}},
		{name: "group of request", in: Request{Name: "web", GID: id(7)}, want: spec.User{UID: 33, GID: 7, Name: "web", Home: "/srv/web", AdditionalGIDs: []uint32{7, 1000, 1001}}},
		{name: "strict", in: Request{Name: "web", Strict: true, Groups: []int64{2000, 34}}, want: spec.User{UID: 33, GID: 34, Name: "web", Home: "/srv/web", AdditionalGIDs: []uint32{34, 2000}}},
		{name: "merge", in: Request{Name: "web", Groups: []int64{2000, 1000}}, want: spec.User{UID: 33, GID: 34, Name: "web", Home: "/srv/web", AdditionalGIDs: []uint32{34, 1000, 1001, 2000}}},
		{name: "a number is no name", in: Request{Image: "1234:1234"}, want: spec.User{UID: 1234, GID: 1234, Home: "/", AdditionalGIDs: []uint32{1234}}},
		{name: "a number of the request is no name", in: Request{UID: id(1234), GID: id(1234)}, want: spec.User{UID: 1234, GID: 1234, Home: "/", AdditionalGIDs: []uint32{1234}}},
		{name: "relative home", in: Request{Image: "odd"}, want: spec.User{UID: 77, GID: 78, Name: "odd", Home: "/", AdditionalGIDs: []uint32{78, 1000}}},
		{name: "unknown name", in: Request{Image: "nobody"}, bad: true},
		{name: "unknown group", in: Request{Image: "web:nogroup"}, bad: true},
		{name: "group alone", in: Request{GID: id(5)}, bad: true},
		{name: "negative", in: Request{UID: id(-1)}, bad: true},
		{name: "too large", in: Request{Image: "4294967295"}, bad: true},
		{name: "far too large", in: Request{Image: "99999999999999999999"}, bad: true},
		{name: "negative supplemental group", in: Request{Groups: []int64{-5}}, bad: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Resolve(rootfs(t), tt.in)
			if tt.bad {
				if !errors.Is(err, ErrInvalid) {
					t.Errorf("%+v, %v", got, err)
				}
				return
			}
			if diff := cmp.Diff(tt.want, got); diff != "" || err != nil {
				t.Errorf("%v\n%s", err, diff)
			}
		})
	}
}

// What an image may have put in the place of its passwd file.
func TestResolveHostileFiles(t *testing.T) {
	for name, put := range map[string]func(path string) error{
		"fifo":      func(path string) error { return unix.Mkfifo(path, 0o644) },
		"directory": func(path string) error { return os.Mkdir(path, 0o755) },
		"large": func(path string) error {
			return errors.Join(os.WriteFile(path, nil, 0o644), os.Truncate(path, maxFile+1))
		},
		"loop": func(path string) error { return os.Symlink("passwd", path) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := rootfs(t)
			path := filepath.Join(dir, "etc/passwd")
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
			if err := put(path); err != nil {
				t.Fatal(err)
			}
			if got, err := Resolve(dir, Request{Image: "web"}); !errors.Is(err, ErrInvalid) {
				t.Errorf("%+v, %v", got, err)
			}
		})
	}
	t.Run("link out of the root", func(t *testing.T) {
		outside := filepath.Join(t.TempDir(), "passwd")
		if err := os.WriteFile(outside, []byte("spy:x:1:1::/:/bin/sh\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		dir := rootfs(t)
		path := filepath.Join(dir, "etc/passwd")
		if err := errors.Join(os.Remove(path), os.Symlink(outside, path)); err != nil {
			t.Fatal(err)
		}
		if got, err := Resolve(dir, Request{Image: "spy"}); err == nil {
			t.Errorf("a file outside was read: %+v", got)
		}
	})
}

// FuzzResolve finds no files that make it panic, or give an ID that the kernel takes for -1.
func FuzzResolve(f *testing.F) {
	f.Add(passwd, group, "web:extra")
	f.Add("a:b:c:d:e:f:g:h\n:::::\n", "x:y:-1:z\n", "a")
	f.Fuzz(func(t *testing.T, passwd, group, name string) {
		dir := rootfs(t)
		for file, text := range map[string]string{"passwd": passwd, "group": group} {
			if err := os.WriteFile(filepath.Join(dir, "etc", file), []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		got, err := Resolve(dir, Request{Image: name})
		if err == nil && (int32(got.UID) < 0 || int32(got.GID) < 0) {
			t.Errorf("%+v", got)
		}
	})
}
