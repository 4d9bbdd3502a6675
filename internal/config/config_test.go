package config

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestDefaultsAreValid(t *testing.T) {
	d := Defaults()
	if err := d.Validate(); err != nil {
		t.Error(err)
	}
}

// TestKeysCoverConfig keeps the table and the struct in step: every field has one key, and no two keys share a field.
func TestKeysCoverConfig(t *testing.T) {
	var c Config
	keyOf := map[any]string{}
	for _, k := range Keys() {
		p := k.field(&c)
		if other, taken := keyOf[p]; taken {
			t.Errorf("%s and %s are the same field", k.Name, other)
		}
		keyOf[p] = k.Name
		if !strings.HasSuffix(k.Doc, ".") {
			t.Errorf("%s: its text %q is no sentence", k.Name, k.Doc)
		}
	}
	var walk func(path string, v reflect.Value)
	walk = func(path string, v reflect.Value) {
		if v.Kind() != reflect.Struct {
			if keyOf[v.Addr().Interface()] == "" {
				t.Errorf("Config%s has no key", path)
			}
			return
		}
		for i := range v.NumField() {
			walk(path+"."+v.Type().Field(i).Name, v.Field(i))
		}
	}
	walk("", reflect.ValueOf(&c).Elem())
}

func TestTablesCoverKeys(t *testing.T) {
	var names []string
	for _, table := range Tables() {
		names = append(names, table.Name)
	}
	var used []string
	for _, k := range Keys() {
		table, _ := k.Table()
		if len(used) == 0 || used[len(used)-1] != table {
			used = append(used, table)
		}
	}
	if diff := cmp.Diff(names, used); diff != "" {
		t.Errorf("tables (-listed +in keys):\n%s", diff)
	}
}

func TestDefaultFileMeansDefaults(t *testing.T) {
	var b bytes.Buffer
	if err := WriteDefault(&b); err != nil {
		t.Fatal(err)
	}
	got, places, err := Load(write(t, b.String()))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(Defaults(), got); diff != "" {
		t.Errorf("the default file changes something (-default +file):\n%s", diff)
	}
	if len(places) != len(Keys()) {
		t.Errorf("the default file sets %d keys of %d", len(places), len(Keys()))
	}
	for i, line := range strings.Split(b.String(), "\n") {
		if strings.HasPrefix(line, "#") && len(line) > lineWidth {
			t.Errorf("line %d is %d bytes long", i+1, len(line))
		}
	}
}

func TestLoadLaterFileWins(t *testing.T) {
	files := write(t,
		"log_level = \"debug\"\n[image]\nmax_parallel_layers = 2\npinned = [\"a\", \"b\"]\n[stream]\nidle_timeout = \"5m\"\n",
		"[image]\npinned = [\"c\"]\n",
		"image.max_parallel_layers = 3\n",
	)
	got, places, err := Load(files)
	if err != nil {
		t.Fatal(err)
	}
	want := Defaults()
	want.LogLevel = "debug"
	want.Image.MaxParallelLayers = 3
	want.Image.Pinned = []string{"c"}
	want.Stream.IdleTimeout = 5 * time.Minute
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("Load (-want +got):\n%s", diff)
	}
	wantPlaces := map[string]Place{
		"log_level":                 {files[0], 1},
		"image.max_parallel_layers": {files[2], 1},
		"image.pinned":              {files[1], 2},
		"stream.idle_timeout":       {files[0], 6},
	}
	if diff := cmp.Diff(wantPlaces, places); diff != "" {
		t.Errorf("places (-want +got):\n%s", diff)
	}
}

// TestLoadMistakes pins line, key and the heart of problem and remedy.
func TestLoadMistakes(t *testing.T) {
	for _, tt := range []struct {
		name, text string
		want       []string // after "FILE:"
	}{
		{"syntax", "log_level = \"info\"\nroot = \n", []string{"2: "}},
		{"twice", "root = \"/a\"\nroot = \"/b\"\n", []string{"2: "}},
		{"unknown key", "\n[image]\npolcy = \"/p\"\n", []string{"3: image.polcy: unknown key; did you mean image.policy?"}},
		{"wrong table", "[cni]\npolicy = \"/p\"\n", []string{"2: cni.policy: unknown key; did you mean image.policy?"}},
		{"unknown table", "[[plugins]]\nx = 1\n", []string{"1: plugins: unknown key; remove it"}},
		{"empty unknown table", "\n[plugins]\n", []string{"2: plugins: unknown key; remove it"}},
		{"value for a table", "image = 3\n", []string{"1: image: is a table, not a value; write [image]"}},
		{"inline table", "image = {\n max_parallel_layers = \"two\" }", []string{"2: image.max_parallel_layers: is a string; write a whole number"}},
		{"list element", "cni.bin_dirs = [\"/a\", 1]\n", []string{"1: cni.bin_dirs: is a list; write a list of strings"}},
		{"empty list", "cni.bin_dirs = []\n", []string{"1: cni.bin_dirs = []: is empty; name at least one"}},
		{"relative", "root = \"var\"\n", []string{"1: root = \"var\": is not an absolute path; write it from"}},
		{"enum", "log_level = \"chatty\"", []string{"1: log_level = \"chatty\": is not a value it can have; use one of \"debug\""}},
		{"range", "[image]\nmax_parallel_layers = 0\n", []string{"2: image.max_parallel_layers = 0: is out of range; use a whole number from 1 to 64"}},
		{"duration", "stream.idle_timeout = 4", []string{"1: stream.idle_timeout: is a number; write a duration in quotes"}},
		{"duration unit", "stream.idle_timeout = \"4\"", []string{"1: stream.idle_timeout = \"4\": is no duration; write a number and a unit"}},
		{"address", "stream.address = \"localhost\"", []string{"1: stream.address = \"localhost\": is no address"}},
		{"capability", "container.capabilities = [\"CHOWN\"]", []string{"1: container.capabilities = [\"CHOWN\"]: \"CHOWN\" is no capability; use a name"}},
		{"ulimit", "container.ulimits = [\"nofile=9:1\"]", []string{"1: container.ulimits = [\"nofile=9:1\"]: \"nofile=9:1\" is no limit"}},
		{"cgroup", "cgroup.parent = \"a/b\"", []string{"1: cgroup.parent = \"a/b\": is no cgroup; write a slice"}},
		{"socket", "socket = \"/" + strings.Repeat("x", 107) + "\"", []string{"1: socket = "}},
		{"pinned", "[image]\npinned = [\"a:1\", \"h.x/base/*\", \"[::1]:5000/*\", \"h.x/[a-c]*\"]\n", []string{
			"2: image.pinned = [\"a:1\", \"h.x/base/*\", \"[::1]:5000/*\", \"h.x/[a-c]*\"]: \"h.x/[a-c]*\" is no image name; write one"}},
		{"pinned one character", "image.pinned = [\"h.x/bas?\"]", []string{"1: image.pinned = [\"h.x/bas?\"]: \"h.x/bas?\" is no image name; write one"}},
		{"several", "root = 1\n[cgroup]\ndriver = \"runc\"\n[nope]\nx=1\n", []string{
			"1: root: is a number; write a string",
			"3: cgroup.driver = \"runc\"",
			"5: nope.x: unknown key",
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			files := write(t, tt.text)
			_, _, err := Load(files)
			if err == nil {
				t.Fatal("no error")
			}
			lines := strings.Split(err.Error(), "\n")
			if len(lines) != len(tt.want) {
				t.Fatalf("%d mistakes, want %d:\n%v", len(lines), len(tt.want), err)
			}
			for i, want := range tt.want {
				if !strings.HasPrefix(lines[i], files[0]+":"+want) {
					t.Errorf("got  %s\nwant %s:%s…", lines[i], files[0], want)
				}
			}
		})
	}
}

func TestFiles(t *testing.T) {
	dir := t.TempDir()
	main, drop := filepath.Join(dir, "orlop.toml"), filepath.Join(dir, "orlop.toml.d")
	if _, err := Files(main, ""); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a file that was asked for and is missing: %v", err)
	}
	for _, f := range []string{main, drop + "/20.toml", drop + "/10.toml", drop + "/note.txt", drop + "/sub.toml/x"} {
		if err := os.MkdirAll(filepath.Dir(f), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(f, nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := Files(main, "")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{main, drop + "/10.toml", drop + "/20.toml"}, got); diff != "" {
		t.Errorf("Files (-want +got):\n%s", diff)
	}
	if _, err := Files(main, filepath.Join(dir, "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a directory that was asked for and is missing: %v", err)
	}
}

func TestParseUlimit(t *testing.T) {
	for _, tt := range []struct {
		in   string
		want Ulimit
		ok   bool
	}{
		{"nofile=1024:2048", Ulimit{"nofile", 1024, 2048}, true},
		{"core=0", Ulimit{"core", 0, 0}, true},
		{"memlock=65536:-1", Ulimit{"memlock", 65536, ^uint64(0)}, true},
		{"nofile", Ulimit{}, false},
		{"NOFILE=1", Ulimit{}, false},
		{"nofile=-1:5", Ulimit{}, false},
		{"nofile=1:2:3", Ulimit{}, false},
		{"nofile=", Ulimit{}, false},
	} {
		got, err := ParseUlimit(tt.in)
		if got != tt.want || (err == nil) != tt.ok {
			t.Errorf("ParseUlimit(%q) = %v, %v; want %v", tt.in, got, err, tt.want)
		}
	}
}

// FuzzLoad: whatever a file holds, every mistake names a line of it, and what is accepted is valid.
func FuzzLoad(f *testing.F) {
	var b bytes.Buffer
	if err := WriteDefault(&b); err != nil {
		f.Fatal(err)
	}
	f.Add(b.Bytes())
	f.Add([]byte("image = { policy = 3, \"x.y\" = [1, \"a\"] }\n[[a.b]]\nc = 1979-05-27\n"))
	f.Add([]byte("[image]\n[image.policy]\n"))
	f.Add([]byte("[\"\"]\n0=[]")) // a table whose name is empty
	f.Fuzz(func(t *testing.T, data []byte) {
		c, places := Defaults(), map[string]Place{}
		mistakes := c.merge("f", data, places)
		last := 1 + bytes.Count(data, []byte("\n"))
		for _, m := range mistakes {
			if m.Line < 1 || m.Line > last {
				t.Errorf("%v: line %d of %d", m, m.Line, last)
			}
		}
		for name, p := range places {
			if p.Line < 1 || p.Line > last {
				t.Errorf("%s is at line %d of %d", name, p.Line, last)
			}
		}
	})
}

// write makes a file of each text and returns their paths.
func write(t *testing.T, texts ...string) []string {
	t.Helper()
	dir := t.TempDir()
	files := make([]string, len(texts))
	for i, text := range texts {
		files[i] = filepath.Join(dir, string(rune('a'+i))+".toml")
		if err := os.WriteFile(files[i], []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return files
}
