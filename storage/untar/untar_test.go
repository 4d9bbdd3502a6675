package untar

import (
	"archive/tar"
	"bytes"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/orlop/orlop/storage/storagetest"
	"github.com/orlop/orlop/test/kernel"
)

func TestMain(m *testing.M) { os.Exit(storagetest.Main(m)) }

// item is one entry of a test archive: a header and its content.
type item struct {
	tar.Header
	content string
}

func file(name, content string) item {
	return item{tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644}, content}
}
func dir(name string) item {
	return item{Header: tar.Header{Name: name, Typeflag: tar.TypeDir, Mode: 0o755}}
}
func symlink(name, to string) item {
	return item{Header: tar.Header{Name: name, Linkname: to, Typeflag: tar.TypeSymlink, Mode: 0o777}}
}
func hardlink(name, to string) item {
	return item{Header: tar.Header{Name: name, Linkname: to, Typeflag: tar.TypeLink, Mode: 0o644}}
}

func archive(t testing.TB, items ...item) *bytes.Buffer {
	t.Helper()
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	for _, it := range items {
		it.Size = int64(len(it.content))
		if err := tw.WriteHeader(&it.Header); err != nil {
			t.Fatal(err)
		}
		if _, err := tw.Write([]byte(it.content)); err != nil {
			t.Fatal(err)
		}
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	return &buf
}

// sandbox is a directory to unpack into, next to files that nobody may touch.
type sandbox struct{ outer, root string }

func newSandbox(t testing.TB) sandbox {
	t.Helper()
	outer := t.TempDir()
	for name, content := range map[string]string{"secret": "do not touch", "dir/inner": "nor this"} {
		path := filepath.Join(outer, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s := sandbox{outer, filepath.Join(outer, "root")}
	if err := os.Mkdir(s.root, 0o755); err != nil {
		t.Fatal(err)
	}
	return s
}

// outside describes everything next to the root: names, modes, owners, times, links, contents.
func (s sandbox) outside(t testing.TB) map[string]string {
	t.Helper()
	facts := map[string]string{}
	err := filepath.WalkDir(s.outer, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if path == s.root {
			return fs.SkipDir
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		content, _ := os.ReadFile(path)
		facts[path] = strings.Join([]string{
			d.Type().String(), time.Unix(st.Mtim.Unix()).String(), time.Unix(st.Ctim.Unix()).String(), string(content),
		}, "|")
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return facts
}

// tree lists what is in the root: path, kind, and content or link target.
func (s sandbox) tree(t testing.TB) map[string]string {
	t.Helper()
	found := map[string]string{}
	err := filepath.WalkDir(s.root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == s.root {
			return err
		}
		rel, _ := filepath.Rel(s.root, path)
		switch d.Type() {
		case fs.ModeDir:
			found[rel] = "dir"
			if buf := make([]byte, 8); true {
				if n, err := unix.Lgetxattr(path, "trusted.overlay.opaque", buf); err == nil && string(buf[:n]) == "y" {
					found[rel] = "opaque dir"
				}
			}
		case fs.ModeSymlink:
			to, _ := os.Readlink(path)
			found[rel] = "-> " + to
		case 0:
			content, _ := os.ReadFile(path)
			found[rel] = "file " + string(content)
		default:
			var st unix.Stat_t
			if err := unix.Lstat(path, &st); err != nil {
				return err
			}
			found[rel] = d.Type().String()
			if isWhiteout(&st) {
				found[rel] = "whiteout"
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// TestHostile unpacks archives that try to get out. Whether one is refused or confined is in the table; that nothing
// outside changes holds for all.
func TestHostile(t *testing.T) {
	kernel.Require(t, kernel.Root)
	for name, tt := range map[string]struct {
		items []item
		want  map[string]string // nil: refused
	}{
		"name climbs out":              {[]item{file("../secret", "x")}, nil},
		"name climbs out later":        {[]item{dir("a"), file("a/../../secret", "x")}, nil},
		"name is the parent":           {[]item{dir("..")}, nil},
		"absolute name":                {[]item{file("/secret", "x")}, map[string]string{"secret": "file x"}},
		"absolute name climbs":         {[]item{file("/../secret", "x")}, nil},
		"file through absolute link":   {[]item{symlink("l", "/dir"), file("l/inner", "x")}, nil},
		"file through relative link":   {[]item{symlink("l", "../dir"), file("l/inner", "x")}, nil},
		"dir through link":             {[]item{symlink("l", ".."), dir("l/new")}, map[string]string{"l": "-> ..", "new": "dir"}},
		"link chain":                   {[]item{symlink("a", ".."), symlink("b", "a/.."), file("b/secret", "x")}, map[string]string{"a": "-> ..", "b": "-> a/..", "secret": "file x"}},
		"link loop":                    {[]item{symlink("a", "b"), symlink("b", "a"), file("a/x", "x")}, nil},
		"file over link":               {[]item{symlink("l", "../secret"), file("l", "x")}, map[string]string{"l": "file x"}},
		"dir over link":                {[]item{symlink("l", "../dir"), dir("l"), file("l/inner", "x")}, map[string]string{"l": "dir", "l/inner": "file x"}},
		"device over link":             {[]item{symlink("l", "../secret"), {Header: tar.Header{Name: "l", Typeflag: tar.TypeFifo}}}, map[string]string{"l": "p---------"}},
		"hard link out":                {[]item{hardlink("l", "../secret")}, nil},
		"hard link absolute":           {[]item{hardlink("l", "/secret")}, nil},
		"hard link through link":       {[]item{symlink("d", ".."), hardlink("l", "d/secret")}, nil},
		"hard link to link":            {[]item{symlink("s", "../secret"), hardlink("l", "s"), file("l", "x")}, map[string]string{"s": "-> ../secret", "l": "file x"}},
		"hard link to directory":       {[]item{dir("d"), hardlink("l", "d")}, nil},
		"hard link to root":            {[]item{hardlink("l", ".")}, nil},
		"hard link to whiteout":        {[]item{file(".wh.x", ""), hardlink("l", ".wh.x")}, nil},
		"whiteout through link":        {[]item{symlink("l", "../dir"), file("l/.wh.inner", "")}, nil},
		"opaque through link":          {[]item{symlink("l", ".."), file("l/.wh..wh..opq", "")}, map[string]string{"l": "-> .."}},
		"whiteout of parent":           {[]item{file("a/.wh...", "")}, nil},
		"whiteout of itself":           {[]item{file("a/.wh..", "")}, nil},
		"whiteout of nothing":          {[]item{file("a/.wh.", "")}, nil},
		"replace a directory by links": {[]item{dir("d"), file("d/f", "1"), symlink("d", ".."), file("d/secret", "x")}, map[string]string{"d": "-> ..", "secret": "file x"}},
		"file as directory":            {[]item{file("f", "1"), file("f/x", "x")}, nil},
		"root as file":                 {[]item{file(".", "x")}, nil},
		"name too long":                {[]item{file(strings.Repeat("n", 300), "x")}, nil},
		"owner out of range":           {[]item{{Header: tar.Header{Name: "f", Typeflag: tar.TypeReg, Uid: 1<<32 - 1}}}, nil},
		"unknown type":                 {[]item{{Header: tar.Header{Name: "f", Typeflag: 'Q'}}}, nil},
		"proc magic link":              {[]item{symlink("l", "/proc/self/root"), file("l/secret", "x")}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSandbox(t)
			before := s.outside(t)
			_, err := Unpack(t.Context(), s.root, archive(t, tt.items...), Options{})
			if diff := cmp.Diff(before, s.outside(t)); diff != "" {
				t.Fatalf("it got out:\n%s", diff)
			}
			if tt.want == nil {
				if !errors.Is(err, ErrInvalid) {
					t.Fatalf("err = %v, want ErrInvalid; tree %v", err, s.tree(t))
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, s.tree(t)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestWhiteouts(t *testing.T) {
	kernel.Require(t, kernel.Root)
	for name, tt := range map[string]struct {
		items []item
		want  map[string]string
	}{
		"one name":           {[]item{file("d/.wh.x", "")}, map[string]string{"d": "dir", "d/x": "whiteout"}},
		"opaque":             {[]item{dir("d"), file("d/.wh..wh..opq", ""), file("d/f", "1")}, map[string]string{"d": "opaque dir", "d/f": "file 1"}},
		"own file stays":     {[]item{file("f", "1"), file(".wh.f", "")}, map[string]string{"f": "file 1"}},
		"own file after":     {[]item{file(".wh.f", ""), file("f", "1")}, map[string]string{"f": "file 1"}},
		"directory replaced": {[]item{file(".wh.d", ""), dir("d"), file("d/f", "1")}, map[string]string{"d": "opaque dir", "d/f": "file 1"}},
		"directory before":   {[]item{dir("d"), file("d/f", "1"), file(".wh.d", "")}, map[string]string{"d": "opaque dir", "d/f": "file 1"}},
		"aufs leftovers":     {[]item{dir(".wh..wh.plnk"), file(".wh..wh.aufs", "")}, map[string]string{}},
		"twice":              {[]item{file(".wh.f", ""), file(".wh.f", "")}, map[string]string{"f": "whiteout"}},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSandbox(t)
			if _, err := Unpack(t.Context(), s.root, archive(t, tt.items...), Options{}); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, s.tree(t)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// TestMetadata checks what a layer says of its files: each thing that an earlier call could take away again.
func TestMetadata(t *testing.T) {
	kernel.Require(t, kernel.Root)
	s := newSandbox(t)
	when := time.Date(2001, 2, 3, 4, 5, 6, 789, time.UTC)
	capability := "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	long := strings.Repeat("long/", 60) + strings.Repeat("n", 200)
	setuid := item{tar.Header{
		Name: "bin/su", Typeflag: tar.TypeReg, Mode: 0o6755, Uid: 12, Gid: 34, ModTime: when, Format: tar.FormatPAX,
		PAXRecords: map[string]string{
			"SCHILY.xattr.security.capability":     capability,
			"SCHILY.xattr.user.note":               "kept",
			"SCHILY.xattr.trusted.overlay.opaque":  "y",
			"SCHILY.xattr.user.overlay.redirect":   "/elsewhere",
			"SCHILY.xattr.trusted.overlay.whiteou": "y",
		},
	}, "program"}
	described := item{Header: tar.Header{Name: "bin", Typeflag: tar.TypeDir, Mode: 0o1777, Uid: 5, Gid: 6, ModTime: when}}
	char := item{Header: tar.Header{Name: "dev/null", Typeflag: tar.TypeChar, Mode: 0o666, Devmajor: 1, Devminor: 3}}
	got, err := Unpack(t.Context(), s.root, archive(t, described, setuid, char, file(long, "deep"), hardlink("su2", "bin/su")), Options{})
	if err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(s.root+"/bin/su", &st); err != nil {
		t.Fatal(err)
	}
	if st.Mode&0o7777 != 0o6755 || st.Uid != 12 || st.Gid != 34 || st.Nlink != 2 || st.Mtim.Nano() != when.UnixNano() {
		t.Errorf("bin/su: %+v", st)
	}
	names := make([]byte, 1024)
	n, err := unix.Llistxattr(s.root+"/bin/su", names)
	if err != nil {
		t.Fatal(err)
	}
	attrs := strings.Split(strings.TrimRight(string(names[:n]), "\x00"), "\x00")
	slices.Sort(attrs)
	if diff := cmp.Diff([]string{"security.capability", "user.note"}, attrs); diff != "" {
		t.Error(diff)
	}
	if err := unix.Stat(s.root+"/bin", &st); err != nil {
		t.Fatal(err)
	}
	if st.Mode&0o7777 != 0o1777 || st.Uid != 5 || st.Mtim.Sec != when.Unix() {
		t.Errorf("bin: %+v", st)
	}
	if err := unix.Stat(s.root+"/dev/null", &st); err != nil || st.Rdev != unix.Mkdev(1, 3) || st.Mode != unix.S_IFCHR|0o666 {
		t.Errorf("dev/null: %+v, %v", st, err)
	}
	if content, err := os.ReadFile(filepath.Join(s.root, long)); string(content) != "deep" {
		t.Errorf("long name: %q, %v", content, err)
	}
	if diff := cmp.Diff([]uint32{0, 5, 12}, got.UIDs); diff != "" {
		t.Error(diff)
	}
	if got.Implied[0] != "." || got.Implied[1] != "dev" || slices.Contains(got.Implied, "bin") {
		t.Errorf("implied = %v", got.Implied)
	}
}

// What was noted of directories that were replaced counts no more, also when others of their name come after them.
func TestReplacedDirectories(t *testing.T) {
	kernel.Require(t, kernel.Root)
	s := newSandbox(t)
	old := dir("a/b/c")
	old.ModTime = time.Unix(1000, 0)
	described := dir("x")
	described.ModTime = time.Unix(2000, 0)
	got, err := Unpack(t.Context(), s.root, archive(t,
		old, file("a/b", "now a file"), dir("a/b"), old, // a is implied, a/b was
		dir("x"), symlink("x", "a"), described, // x is described at last
		symlink("a", "x"), file("y/f", ""),
	), Options{})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{".", "y"}, got.Implied); diff != "" {
		t.Error("implied: " + diff)
	}
	if st, err := os.Stat(s.root + "/x"); err != nil || !st.ModTime().Equal(described.ModTime) {
		t.Errorf("x: %v, %v; want the time %v", st, err, described.ModTime)
	}
}

// BenchmarkReplace has a layer that makes directories and replaces a file as often.
func BenchmarkReplace(b *testing.B) {
	kernel.Require(b, kernel.Root)
	for _, n := range []int{1000, 4000, 16000} {
		b.Run(strconv.Itoa(n), func(b *testing.B) {
			var items []item
			for i := range n {
				items = append(items, dir("d"+strconv.Itoa(i)), file("f", ""))
			}
			layer := archive(b, items...).Bytes()
			for b.Loop() {
				s := newSandbox(b)
				if _, err := Unpack(b.Context(), s.root, bytes.NewReader(layer), Options{}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// TestSparse reads an old GNU sparse file made by hand: 1 MiB of which the last 512 bytes are data.
func TestSparse(t *testing.T) {
	kernel.Require(t, kernel.Root)
	s := newSandbox(t)
	const logical = 1 << 20
	if _, err := Unpack(t.Context(), s.root, bytes.NewReader(gnuSparse(logical)), Options{}); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(s.root+"/sparse", &st); err != nil {
		t.Fatal(err)
	}
	if st.Size != logical || st.Blocks*512 >= logical {
		t.Errorf("size %d, on disk %d: the hole is filled", st.Size, st.Blocks*512)
	}
	content, err := os.ReadFile(s.root + "/sparse")
	if err != nil || content[logical-1] != 'd' || content[0] != 0 {
		t.Errorf("content is wrong: %v", err)
	}
}

// gnuSparse builds the header as GNU tar does: offset and length of the one piece stand where ustar has a prefix.
func gnuSparse(logical int64) []byte {
	octal := func(field []byte, v int64) {
		for i := len(field) - 2; i >= 0; i-- {
			field[i] = byte('0' + v&7)
			v >>= 3
		}
	}
	h := make([]byte, 512)
	copy(h, "sparse")
	octal(h[100:108], 0o644)
	octal(h[108:116], 0)
	octal(h[116:124], 0)
	octal(h[124:136], 512)
	octal(h[136:148], 0)
	h[156] = 'S'
	copy(h[257:], "ustar  \x00")
	octal(h[386:398], logical-512)
	octal(h[398:410], 512)
	octal(h[483:495], logical)
	copy(h[148:156], "        ")
	var sum int64
	for _, b := range h {
		sum += int64(b)
	}
	octal(h[148:155], sum)
	return slices.Concat(h, bytes.Repeat([]byte("d"), 512), make([]byte, 1024))
}

func TestLimits(t *testing.T) {
	kernel.Require(t, kernel.Root)
	big := file("big", strings.Repeat("x", 1<<20))
	for name, o := range map[string]Options{
		"budget":     {Budget: NewBudget(1 << 20)}, // the header counts too
		"free space": {MinFreeBytes: 1 << 60},
	} {
		s := newSandbox(t)
		if _, err := Unpack(t.Context(), s.root, archive(t, big), o); !errors.Is(err, ErrLimit) {
			t.Errorf("%s: err = %v, want ErrLimit", name, err)
		}
		if found := s.tree(t); len(found) > 0 {
			t.Errorf("%s: %v was begun", name, slices.Collect(maps.Keys(found)))
		}
	}
	budget := NewBudget(2 << 20)
	cut := bytes.NewReader(archive(t, big).Bytes()[:1<<20])
	if _, err := Unpack(t.Context(), newSandbox(t).root, cut, Options{Budget: budget}); !errors.Is(err, ErrInvalid) {
		t.Errorf("cut: %v", err)
	}
	if _, err := Unpack(t.Context(), newSandbox(t).root, archive(t, big), Options{Budget: budget, MinFreeBytes: 1}); err != nil {
		t.Errorf("within limits, at the second attempt: %v", err)
	}
}

func TestBroken(t *testing.T) {
	kernel.Require(t, kernel.Root)
	whole := archive(t, file("a", strings.Repeat("x", 2000))).Bytes()
	for name, data := range map[string][]byte{
		"cut in content": whole[:1000],
		"cut in header":  whole[:100],
		"no archive":     bytes.Repeat([]byte("nonsense"), 200),
	} {
		if _, err := Unpack(t.Context(), newSandbox(t).root, bytes.NewReader(data), Options{}); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: err = %v, want ErrInvalid", name, err)
		}
	}
}

// FuzzUnpack makes archives of arbitrary entries and of arbitrary bytes: whatever they say, nothing outside changes.
func FuzzUnpack(f *testing.F) {
	kernel.Require(f, kernel.Root)
	f.Add(byte('0'), "../secret", "", byte('2'), "l", "/dir", []byte("x"))
	f.Add(byte('2'), "l", "..", byte('0'), "l/secret", "", []byte("x"))
	f.Add(byte('2'), "l", "../dir", byte('1'), "l/x", "l/inner", []byte(nil))
	f.Add(byte('5'), "d", "", byte('0'), "d/.wh..wh..opq", "", []byte(nil))
	f.Add(byte('2'), "d", "..", byte('5'), "d/../d", "", gnuSparse(4096))
	f.Fuzz(func(t *testing.T, kind1 byte, name1, link1 string, kind2 byte, name2, link2 string, tail []byte) {
		var buf bytes.Buffer
		tw := tar.NewWriter(&buf)
		for _, h := range []tar.Header{
			{Typeflag: kind1, Name: name1, Linkname: link1, Mode: 0o777},
			{Typeflag: kind2, Name: name2, Linkname: link2, Mode: 0o4777},
			{Typeflag: tar.TypeReg, Name: name1 + "/" + name2, Size: 4},
		} {
			if tw.WriteHeader(&h) == nil {
				tw.Write([]byte("data")[:h.Size])
			}
		}
		buf.Write(tail)
		s := newSandbox(t)
		before := s.outside(t)
		_, _ = Unpack(t.Context(), s.root, &buf, Options{Budget: NewBudget(1 << 20)}) // any outcome is right inside
		if diff := cmp.Diff(before, s.outside(t)); diff != "" {
			t.Fatalf("it got out:\n%s", diff)
		}
	})
}
