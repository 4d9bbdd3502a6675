package logfile

import (
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Journal is memory that outlives the worker: a memfd that the keeper holds too. It has one [Slot] for each log, in
// which a turn of copying is announced before it happens, so that the next worker can finish a turn that a kill cut
// short. Processor caches and the kernel make it safe against SIGKILL; it need not survive a power cut, because
// neither do the pipes that it speaks of.
type Journal struct {
	file *os.File
	mem  []byte

	mu   sync.Mutex // guards used
	used []bool
}

// slots is how many logs a node can have at a time; memory is taken only by those that are in use.
const slots = 16384

// Slot is one log's place in the journal. Its layout is shared between processes of the same binary version or a
// newer one, so fields are only ever added.
type Slot struct {
	pending uint64 // 1 while the turn below is under way; written last, cleared first
	stream  int64
	start   int64 // size of the log before the turn
	spooled int64 // bytes in the spool before the turn
	take    int64 // bytes of the spool that the turn consumes
	put     int64 // bytes that the turn appends to the log
	nanos   int64 // time stamp of the turn's lines
	flush   int64 // 1 if an unfinished line is written too
}

// NewJournal makes an empty journal.
func NewJournal() (*Journal, error) {
	fd, err := unix.MemfdCreate("orlop-log-journal", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("log journal: %w", err)
	}
	f := os.NewFile(uintptr(fd), "log-journal")
	if err := f.Truncate(int64(slots * unsafe.Sizeof(Slot{}))); err != nil {
		return nil, fmt.Errorf("log journal: %w", err)
	}
	return OpenJournal(f)
}

// OpenJournal takes over the journal of an earlier worker. [Journal.Reserve] must be called for the slots in use.
func OpenJournal(f *os.File) (*Journal, error) {
	mem, err := unix.Mmap(int(f.Fd()), 0, int(slots*unsafe.Sizeof(Slot{})), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("log journal: map: %w", err)
	}
	return &Journal{file: f, mem: mem, used: make([]bool, 0, 64)}, nil
}

// File is what the keeper holds.
func (j *Journal) File() *os.File { return j.file }

// Take returns the number of a free slot, emptied.
func (j *Journal) Take() (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for i, used := range j.used {
		if !used {
			j.used[i] = true
			*j.slot(i) = Slot{}
			return i, nil
		}
	}
	if len(j.used) == slots {
		return 0, fmt.Errorf("log journal: all %d slots are in use", slots)
	}
	j.used = append(j.used, true)
	*j.slot(len(j.used) - 1) = Slot{}
	return len(j.used) - 1, nil
}

// Reserve marks a slot that an earlier worker took, and keeps what it says.
func (j *Journal) Reserve(i int) error {
	if i < 0 || i >= slots {
		return fmt.Errorf("log journal: no slot %d", i)
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	for len(j.used) <= i {
		j.used = append(j.used, false)
	}
	j.used[i] = true
	return nil
}

// Free gives a slot back.
func (j *Journal) Free(i int) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if i >= 0 && i < len(j.used) {
		j.used[i] = false
	}
}

func (j *Journal) slot(i int) *Slot {
	return (*Slot)(unsafe.Pointer(&j.mem[i*int(unsafe.Sizeof(Slot{}))]))
}

// turn is what a slot says.
type turn struct {
	stream         Stream
	start, spooled int64
	take, put      int64
	nanos          int64
	flush          bool
}

func (s *Slot) announce(t turn) {
	s.stream, s.start, s.spooled, s.take, s.put, s.nanos = int64(t.stream), t.start, t.spooled, t.take, t.put, t.nanos
	s.flush = 0
	if t.flush {
		s.flush = 1
	}
	atomic.StoreUint64(&s.pending, 1) // orders the stores above before it
}

func (s *Slot) clear() { atomic.StoreUint64(&s.pending, 0) }

func (s *Slot) read() (turn, bool) {
	if atomic.LoadUint64(&s.pending) == 0 {
		return turn{}, false
	}
	return turn{Stream(s.stream), s.start, s.spooled, s.take, s.put, s.nanos, s.flush != 0}, true
}
