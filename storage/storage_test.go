package storage

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	imgspec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/orlop/orlop/storage/storagetest"
)

func TestMain(m *testing.M) {
	if Init() { // the library runs the test binary again, see there
		return
	}
	os.Exit(storagetest.Main(m))
}

func testConfig(t testing.TB) Config {
	t.Helper()
	root, run := storagetest.Dirs(t)
	return Config{Root: root, RunRoot: run}
}

func openStore(t testing.TB, cfg Config) *Store {
	t.Helper()
	s, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func closeStore(t testing.TB, s *Store) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
}

// tarball makes a layer. A name with a slash at its end is a directory; mode 0 means 0755.
func tarball(t testing.TB, headers ...tar.Header) []byte {
	t.Helper()
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	for _, h := range headers {
		h.Typeflag = tar.TypeReg
		if strings.HasSuffix(h.Name, "/") {
			h.Typeflag = tar.TypeDir
		}
		if h.Mode == 0 {
			h.Mode = 0o755
		}
		h.Size = int64(len(h.Linkname)) // the content stands in Linkname
		content := h.Linkname
		h.Linkname = ""
		if err := tw.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := tw.Write([]byte(content)); err != nil {
			t.Fatal(err)
		}
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func stage(t testing.TB, s *Store, layer []byte) *StagedLayer {
	t.Helper()
	staged, err := s.StageLayer(t.Context(), LayerSource{Tar: bytes.NewReader(layer), DiffID: digest.FromBytes(layer)})
	if err != nil {
		t.Fatal(err)
	}
	return staged
}

// putImage commits an image of the layers and returns its ID.
func putImage(t testing.TB, s *Store, name string, layers ...[]byte) string {
	t.Helper()
	var config imgspec.Image
	config.Config.Cmd = []string{name}
	var staged []*StagedLayer
	for _, l := range layers {
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, digest.FromBytes(l))
	}
	for i, id := range LayerIDs(config.RootFS.DiffIDs) {
		var l *StagedLayer
		if !s.HasLayer(id) {
			l = stage(t, s, layers[i])
		}
		staged = append(staged, l)
	}
	data, err := json.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	id := digest.FromBytes(data).Encoded()
	if err := s.CommitImage(ImageRecord{
		ID: id, Names: []string{name}, DiffIDs: config.RootFS.DiffIDs, Config: data,
		Manifest: []byte("{}"), ManifestDigest: digest.FromString("{}"),
	}, staged); err != nil {
		t.Fatal(err)
	}
	return id
}

func mounts(t testing.TB, below string) []string {
	t.Helper()
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for line := range strings.Lines(string(data)) {
		if point := strings.Fields(line)[4]; strings.HasPrefix(point, below) {
			found = append(found, point)
		}
	}
	return found
}

func stagedDirs(t testing.TB, s *Store) int {
	t.Helper()
	entries, err := os.ReadDir(s.stagingDir())
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return len(entries)
}

func TestRootfs(t *testing.T) {
	cfg := testConfig(t)
	s := openStore(t, cfg)
	img := putImage(t, s, "a:1", tarball(t, tar.Header{Name: "etc/"}, tar.Header{Name: "etc/f", Linkname: "lower"}))
	o := RootfsOptions{ID: "c1", ImageID: img}
	path, err := s.CreateRootfs(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := s.CreateRootfs(t.Context(), o); again != path || err != nil {
		t.Errorf("repeat = %q, %v; want %q", again, err, path)
	}
	if err := os.WriteFile(path+"/etc/new", make([]byte, 100_000), 0o644); err != nil {
		t.Fatal(err)
	}
	upper, err := s.RootfsUpperDir("c1")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(upper + "/etc/new"); err != nil {
		t.Error(err)
	}
	// / and /etc and the file; 100 kB and a block for each directory.
	if u, err := s.RootfsUsage(t.Context(), "c1"); err != nil || u.Inodes != 3 || u.Bytes < 100_000 || u.Bytes > 120_000 {
		t.Errorf("usage = %+v, %v", u, err)
	}
	if _, total, err := s.FilesystemUsage(t.Context()); err != nil || total.Bytes < 108_000 || total.Inodes != 5 {
		t.Errorf("usage of all = %+v, %v", total, err)
	}
	if ids, err := s.ListRootfs(); err != nil || !slices.Equal(ids, []string{"c1"}) {
		t.Errorf("list = %v, %v", ids, err)
	}
	if err := s.DeleteImage(img); !errors.Is(err, ErrInUse) {
		t.Errorf("delete of a used image: %v, want ErrInUse", err)
	}

	// The daemon restarts: the mount goes on, and what was written is there.
	closeStore(t, s)
	if _, err := os.Stat(path + "/etc/new"); err != nil {
		t.Errorf("the restart unmounted: %v", err)
	}
	s = openStore(t, cfg)
	if again, err := s.MountRootfs(t.Context(), "c1"); again != path || err != nil {
		t.Errorf("after restart = %q, %v", again, err)
	}
	for range 2 { // unmounting and deleting converge
		if err := s.UnmountRootfs(t.Context(), "c1"); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Stat(path + "/etc/new"); err == nil {
		t.Error("still mounted")
	}
	if again, err := s.MountRootfs(t.Context(), "c1"); again != path || err != nil {
		t.Errorf("mount again = %q, %v", again, err)
	}
	for range 2 {
		if err := s.DeleteRootfs(t.Context(), "c1"); err != nil {
			t.Error(err)
		}
	}
	if err := s.DeleteImage(img); err != nil {
		t.Error(err)
	}
	closeStore(t, s)
	if left := mounts(t, cfg.Root); len(left) > 0 {
		t.Errorf("mounts left: %v", left)
	}
}

// TestRootfsInParallel makes and deletes root filesystems side by side, each ID twice at a time: a repeat that comes
// while the first still runs gets the same mount point.
func TestRootfsInParallel(t *testing.T) {
	cfg := testConfig(t)
	s := openStore(t, cfg)
	img := putImage(t, s, "a:1", tarball(t, tar.Header{Name: "f"}))
	var work sync.WaitGroup
	for i := range 8 {
		work.Go(func() {
			o := RootfsOptions{ID: fmt.Sprint("c", i), ImageID: img}
			var paths [2]string
			var pair sync.WaitGroup
			for j := range paths {
				pair.Go(func() {
					var err error
					if paths[j], err = s.CreateRootfs(t.Context(), o); err != nil {
						t.Error(err)
					}
				})
			}
			pair.Wait()
			if paths[0] != paths[1] {
				t.Errorf("%s: %v", o.ID, paths)
			}
			if err := s.DeleteRootfs(t.Context(), o.ID); err != nil {
				t.Error(err)
			}
		})
	}
	work.Wait()
	closeStore(t, s)
	if left := mounts(t, cfg.Root); len(left) > 0 {
		t.Errorf("mounts left: %v", left)
	}
}

func TestRootfsErrors(t *testing.T) {
	cfg := testConfig(t)
	s := openStore(t, cfg)
	defer closeStore(t, s)
	for _, id := range []string{"", "../x", "a/b", strings.Repeat("x", 200)} {
		if _, err := s.CreateRootfs(t.Context(), RootfsOptions{ID: id}); err == nil {
			t.Errorf("ID %q was taken", id)
		}
	}
	missing := RootfsOptions{ID: "c", ImageID: strings.Repeat("0", 64)}
	if _, err := s.CreateRootfs(t.Context(), missing); !errors.Is(err, ErrNotFound) {
		t.Errorf("unknown image: %v", err)
	}
	if _, err := s.MountRootfs(t.Context(), "c"); !errors.Is(err, ErrNotFound) {
		t.Errorf("mount of nothing: %v", err)
	}
	if _, err := s.RootfsUsage(t.Context(), "c"); !errors.Is(err, ErrNotFound) {
		t.Errorf("usage of nothing: %v", err)
	}
	if _, err := Open(cfg); !errors.Is(err, ErrLocked) {
		t.Errorf("second Open: %v, want ErrLocked", err)
	}
}

// TestRecordsThatCanNotBeReadAreNoAbsence breaks the file of records behind the store's back.
func TestRecordsThatCanNotBeReadAreNoAbsence(t *testing.T) {
	cfg := testConfig(t)
	s := openStore(t, cfg)
	defer closeStore(t, s)
	image := putImage(t, s, "a:1", tarball(t, tar.Header{Name: "f", Linkname: "lower"}))
	if _, err := s.CreateRootfs(t.Context(), RootfsOptions{ID: "c", ImageID: image}); err != nil {
		t.Fatal(err)
	}
	records := filepath.Join(cfg.Root, "overlay-containers", "containers.json")
	good, err := os.ReadFile(records)
	if err != nil {
		t.Fatal(err)
	}
	write := func(text []byte) { // and have the store read it again
		t.Helper()
		lock := filepath.Join(cfg.Root, "overlay-containers", "containers.lock")
		if err := errors.Join(os.WriteFile(records, text, 0o600), os.WriteFile(lock, []byte(rand.Text()+rand.Text()+rand.Text()), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	write([]byte("no JSON"))
	if err := s.DeleteRootfs(t.Context(), "c"); err == nil {
		t.Error("DeleteRootfs says that there is nothing to delete")
	}
	if _, err := s.MountRootfs(t.Context(), "c"); err == nil || errors.Is(err, ErrNotFound) {
		t.Errorf("MountRootfs: %v", err)
	}
	write(good)
	if err := s.DeleteRootfs(t.Context(), "c"); err != nil {
		t.Error(err)
	}
}

// TestUserNamespaceRootfs mounts with mapped IDs: what root owns in the image belongs to the mapped root.
func TestUserNamespaceRootfs(t *testing.T) {
	s := openStore(t, testConfig(t))
	defer closeStore(t, s)
	img := putImage(t, s, "a:1", tarball(t, tar.Header{Name: "f", Linkname: "x"}, tar.Header{Name: "g", Uid: 7, Linkname: "x"}))
	maps := []IDMap{{ContainerID: 0, HostID: 100000, Size: 65536}}
	path, err := s.CreateRootfs(t.Context(), RootfsOptions{ID: "c", ImageID: img, UIDs: maps, GIDs: maps})
	if err != nil {
		t.Fatal(err)
	}
	defer s.DeleteRootfs(context.WithoutCancel(t.Context()), "c")
	for name, want := range map[string]uint32{"": 100000, "/f": 100000, "/g": 100007} {
		var st unix.Stat_t
		if err := unix.Stat(path+name, &st); err != nil || st.Uid != want {
			t.Errorf("%q belongs to %d, %v; want %d", name, st.Uid, err, want)
		}
	}
}

// A daemon that is killed while it removes a root filesystem may leave it mounted where the driver moved it.
func TestClearUnmountsWhatWasBeingRemoved(t *testing.T) {
	s := openStore(t, testConfig(t))
	defer closeStore(t, s)
	moved := filepath.Join(s.deletedDir(), "temp-dir-1")
	merged := filepath.Join(moved, "1-layer", "merged")
	if err := os.MkdirAll(merged, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", merged, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(merged, unix.MNT_DETACH) })
	if err := s.clear(s.deletedDir()); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(moved); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s is still there: %v", moved, err)
	}
}

func TestImageMounts(t *testing.T) {
	cfg := testConfig(t)
	s := openStore(t, cfg)
	base := tarball(t, tar.Header{Name: "f", Linkname: "x"})
	one, two := putImage(t, s, "a:1", base), putImage(t, s, "b:1", base) // with the same top layer
	path, err := s.MountImage(t.Context(), one, "c1/0", "")
	if err != nil {
		t.Fatal(err)
	}
	for holder, img := range map[string]string{"c1/0": one, "c2/0": one, "c3/0": two} {
		if again, err := s.MountImage(t.Context(), img, holder, ""); err != nil || again != path {
			t.Errorf("%s: %q, %v; want %q", holder, again, err, path)
		}
	}
	if err := s.DeleteImage(one); !errors.Is(err, ErrInUse) {
		t.Errorf("delete of a mounted image: %v, want ErrInUse", err)
	}
	if err := os.WriteFile(path+"/g", nil, 0o600); !errors.Is(err, unix.EROFS) {
		t.Errorf("write: %v, want EROFS", err)
	}
	closeStore(t, s)
	s = openStore(t, cfg)
	for i, holder := range []string{"c1/0", "c1/0", "c2/0", "c3/0", "unknown"} {
		if _, err := os.Stat(path + "/f"); (err == nil) != (i < 4) {
			t.Errorf("before unmount %d: %v", i, err)
		}
		if err := s.UnmountImage(t.Context(), holder); err != nil {
			t.Error(err)
		}
	}
	closeStore(t, s)
	if left := mounts(t, cfg.Root); len(left) > 0 {
		t.Errorf("mounts left: %v", left)
	}
}

// TestImpliedDirectories has layers that name a file and not its directory: the directory keeps the mode and owner
// that it has below.
func TestImpliedDirectories(t *testing.T) {
	s := openStore(t, testConfig(t))
	defer closeStore(t, s)
	img := putImage(t, s, "a:1",
		tarball(t, tar.Header{Name: "./", Mode: 0o700}, tar.Header{Name: "gone"}),
		tarball(t, tar.Header{Name: "./", Mode: 0o711}, tar.Header{Name: "tmp/", Mode: 0o1777}, tar.Header{Name: "srv/", Mode: 0o750, Uid: 3, Gid: 4}),
		tarball(t, tar.Header{Name: "other/", Mode: 0o700}),
		tarball(t, tar.Header{Name: "tmp/x"}, tar.Header{Name: "srv/new/y"}),
	)
	path, err := s.CreateRootfs(t.Context(), RootfsOptions{ID: "c", ImageID: img})
	if err != nil {
		t.Fatal(err)
	}
	defer s.DeleteRootfs(context.WithoutCancel(t.Context()), "c")
	got := map[string]string{}
	for _, name := range []string{".", "tmp", "srv", "srv/new", "other"} {
		var st unix.Stat_t
		if err := unix.Stat(filepath.Join(path, name), &st); err != nil {
			t.Fatal(err)
		}
		got[name] = fmt.Sprintf("%o %d:%d", st.Mode&0o7777, st.Uid, st.Gid)
	}
	want := map[string]string{".": "711 0:0", "tmp": "1777 0:0", "srv": "750 3:4", "srv/new": "755 0:0", "other": "700 0:0"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// TestManyLayers mounts more layers than fit into one page of mount options.
func TestManyLayers(t *testing.T) {
	s := openStore(t, testConfig(t))
	defer closeStore(t, s)
	var layers [][]byte
	for i := range 256 {
		layers = append(layers, tarball(t, tar.Header{Name: fmt.Sprint("f", i)}))
	}
	path, err := s.CreateRootfs(t.Context(), RootfsOptions{ID: "c", ImageID: putImage(t, s, "a:1", layers...)})
	if err != nil {
		t.Fatal(err)
	}
	if entries, err := os.ReadDir(path); len(entries) != len(layers) {
		t.Errorf("%d files, %v; want %d", len(entries), err, len(layers))
	}
	if err := s.DeleteRootfs(t.Context(), "c"); err != nil {
		t.Error(err)
	}
}

func TestStageRefuses(t *testing.T) {
	s := openStore(t, testConfig(t))
	defer closeStore(t, s)
	layer := tarball(t, tar.Header{Name: "f", Linkname: strings.Repeat("x", 5000)})
	for name, tt := range map[string]struct {
		src  LayerSource
		want error
	}{
		"other content": {LayerSource{Tar: bytes.NewReader(layer), DiffID: digest.FromString("other")}, ErrInvalidLayer},
		"no digest":     {LayerSource{Tar: bytes.NewReader(layer), DiffID: "sha256:12"}, ErrInvalidLayer},
		"too large":     {LayerSource{Tar: bytes.NewReader(layer), DiffID: digest.FromBytes(layer), Budget: NewBudget(1000)}, ErrLimit},
		"disk full":     {LayerSource{Tar: bytes.NewReader(layer), DiffID: digest.FromBytes(layer), MinFreeBytes: 1 << 60}, ErrLimit},
	} {
		if _, err := s.StageLayer(t.Context(), tt.src); !errors.Is(err, tt.want) {
			t.Errorf("%s: %v, want %v", name, err, tt.want)
		}
	}
	for range 2 {
		if err := stage(t, s, layer).Discard(); err != nil {
			t.Error(err)
		}
	}
	if n := stagedDirs(t, s); n != 0 {
		t.Errorf("%d staging directories left", n)
	}
}

// TestCommitFails has a layer that is neither staged nor there: the layers below it go away again.
func TestCommitFails(t *testing.T) {
	s := openStore(t, testConfig(t))
	defer closeStore(t, s)
	low, high := tarball(t, tar.Header{Name: "low"}), tarball(t, tar.Header{Name: "high"})
	ids := []digest.Digest{digest.FromBytes(low), digest.FromBytes(high)}
	err := s.CommitImage(ImageRecord{ID: strings.Repeat("1", 64), DiffIDs: ids}, []*StagedLayer{stage(t, s, low), nil})
	if !errors.Is(err, ErrLayerGone) {
		t.Errorf("err = %v, want ErrLayerGone", err)
	}
	if layers, err := s.store.Layers(); err != nil || len(layers) != 0 || s.HasLayer(LayerIDs(ids)[0]) {
		t.Errorf("layers left: %v, %v", layers, err)
	}
}

// TestRepair opens stores that were left in the middle of something.
func TestRepair(t *testing.T) {
	low, high := tarball(t, tar.Header{Name: "low"}), tarball(t, tar.Header{Name: "high"})
	ids := LayerIDs([]digest.Digest{digest.FromBytes(low), digest.FromBytes(high)})
	for name, tt := range map[string]struct {
		damage     func(t *testing.T, s *Store)
		wantImages int
		wantLayers int
	}{
		"nothing":       {func(*testing.T, *Store) {}, 2, 3},
		"staging":       {func(t *testing.T, s *Store) { stage(t, s, low) }, 2, 3},
		"orphan layers": {func(t *testing.T, s *Store) { damageRecord(t, s) }, 1, 1},
		"layer lost":    {func(t *testing.T, s *Store) { remove(t, filepath.Join(s.cfg.Root, "overlay", ids[0])) }, 1, 1},
		"config lost": {func(t *testing.T, s *Store) {
			matches, err := filepath.Glob(filepath.Join(s.cfg.Root, "overlay-images", imageOf(t, s, "two:1"), "*"))
			if err != nil || len(matches) == 0 {
				t.Fatal("no config file", err)
			}
			for _, m := range matches {
				remove(t, m)
			}
		}, 1, 1},
		"power cut before the flush": {func(t *testing.T, s *Store) { note(t, s, "an earlier boot", ids[1]) }, 1, 1},
		"kill before the flush": {func(t *testing.T, s *Store) {
			boot, err := bootID()
			if err != nil {
				t.Fatal(err)
			}
			note(t, s, boot, ids[1])
		}, 2, 3},
		"note cut off": {func(t *testing.T, s *Store) {
			if err := os.MkdirAll(s.notesDir(), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(s.notesDir()+"/x", []byte(`{"Boo`), 0o600); err != nil {
				t.Fatal(err)
			}
		}, 2, 3},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := testConfig(t)
			s := openStore(t, cfg)
			putImage(t, s, "one:1", tarball(t, tar.Header{Name: "one"}))
			putImage(t, s, "two:1", low, high)
			s.background.Wait()
			tt.damage(t, s)
			closeStore(t, s)
			s = openStore(t, cfg)
			records, err := s.Images()
			if err != nil || len(records) != tt.wantImages {
				t.Errorf("%d images, %v; want %d", len(records), err, tt.wantImages)
			}
			if layers, err := s.store.Layers(); err != nil || len(layers) != tt.wantLayers || len(s.layers) != tt.wantLayers {
				t.Errorf("%d layers, %v; want %d", len(layers), err, tt.wantLayers)
			}
			if n := stagedDirs(t, s); n != 0 {
				t.Errorf("%d staging directories left", n)
			}
			putImage(t, s, "two:1", low, high) // what was lost can be pulled again
			closeStore(t, s)
			if left, err := os.ReadDir(s.notesDir()); err != nil || len(left) > 0 {
				t.Errorf("notes left: %v, %v", left, err)
			}
		})
	}
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.RemoveAll(path); err != nil {
		t.Fatal(err)
	}
}

func note(t *testing.T, s *Store, boot string, layers ...string) {
	t.Helper()
	data, err := json.Marshal(unflushedNote{boot, layers})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(s.notesDir(), "note"), data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func imageOf(t *testing.T, s *Store, name string) string {
	t.Helper()
	img, err := s.store.Image(name)
	if err != nil {
		t.Fatal(err)
	}
	return img.ID
}

// damageRecord takes an image's record away and leaves its layers, as a kill between the two writes does.
func damageRecord(t *testing.T, s *Store) {
	t.Helper()
	file := filepath.Join(s.cfg.Root, "overlay-images", "images.json")
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var all []map[string]any
	if err := json.Unmarshal(data, &all); err != nil {
		t.Fatal(err)
	}
	two := imageOf(t, s, "two:1")
	all = slices.DeleteFunc(all, func(img map[string]any) bool { return img["id"] == two })
	if data, err = json.Marshal(all); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestUsageIsBounded counts a tree that takes longer than a caller waits.
func TestUsageIsBounded(t *testing.T) {
	dir := t.TempDir()
	for i := range 300 {
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprint(i)), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c := newUsageCache()
	ctx, cancel := context.WithCancel(t.Context())
	cancel() // a caller who does not wait at all
	if _, err := c.get(ctx, "c", dir); err != nil {
		t.Error(err)
	}
	if u, err := c.get(t.Context(), "c", dir); err != nil || u.Inodes != 301 {
		t.Errorf("usage = %+v, %v; want 301 inodes", u, err)
	}
	c.close()
	if _, err := walk(dir, func(Usage) bool { return false }); !errors.Is(err, errStopped) {
		t.Errorf("a stopped walk: %v", err)
	}
}

func BenchmarkCreateRootfs(b *testing.B) {
	s := openStore(b, testConfig(b))
	defer closeStore(b, s)
	img := putImage(b, s, "a:1", tarball(b, tar.Header{Name: "a"}), tarball(b, tar.Header{Name: "b"}), tarball(b, tar.Header{Name: "c"}))
	for _, others := range []int{1, 110} {
		b.Run(fmt.Sprint("beside-", others), func(b *testing.B) {
			for i := range others {
				id := fmt.Sprint("other-", i)
				if _, err := s.CreateRootfs(b.Context(), RootfsOptions{ID: id, ImageID: img}); err != nil {
					b.Fatal(err)
				}
				defer s.DeleteRootfs(context.Background(), id)
			}
			n := 0
			for b.Loop() {
				n++
				id := fmt.Sprint("c-", n)
				if _, err := s.CreateRootfs(b.Context(), RootfsOptions{ID: id, ImageID: img}); err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				if err := s.DeleteRootfs(b.Context(), id); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
		})
	}
}

func BenchmarkRootfsUsage(b *testing.B) {
	s := openStore(b, testConfig(b))
	defer closeStore(b, s)
	img := putImage(b, s, "a:1", tarball(b, tar.Header{Name: "a"}))
	if _, err := s.CreateRootfs(b.Context(), RootfsOptions{ID: "c", ImageID: img}); err != nil {
		b.Fatal(err)
	}
	defer s.DeleteRootfs(context.Background(), "c")
	for b.Loop() {
		if _, err := s.RootfsUsage(b.Context(), "c"); err != nil {
			b.Fatal(err)
		}
	}
}
