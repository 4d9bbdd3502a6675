package xtables

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/maphash"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/orlop/orlop/proxy/model"
)

// legacy is what the kernel has in legacy tables.
type legacy struct {
	sizes []tableSize
	// ours is a sum over our chains and the rules that lead to them, wherever they stand, if summed is true.
	ours   uint64
	summed bool
}

// tableSize is what the kernel tells of a legacy table: struct ipt_getinfo, which is that of IPv6, too.
type tableSize struct {
	name                [32]byte
	validHooks          uint32
	entries, underflows [5]uint32
	count, bytes        uint32
}

// The options of sockets are those of IPv4 and of IPv6: see ip_tables.h.
const (
	optGetInfo    = 64
	optGetEntries = 65
)

// socket is one that tells of a family's tables.
type socket struct{ fd, level int }

func openSocket(f model.Family) (socket, error) {
	domain, level := unix.AF_INET, unix.SOL_IP
	if f == model.IPv6 {
		domain, level = unix.AF_INET6, unix.SOL_IPV6
	}
	fd, err := unix.Socket(domain, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	return socket{fd, level}, err
}

func (s socket) get(option uintptr, to unsafe.Pointer, bytes uint32) error {
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(s.fd), uintptr(s.level), option, uintptr(to), uintptr(unsafe.Pointer(&bytes)), 0)
	if errno != 0 {
		return errno
	}
	return nil
}

// sizes are zero for a table that nobody has made.
func (s socket) sizes() ([]tableSize, error) {
	out := make([]tableSize, len(Tables))
	for i, table := range Tables {
		copy(out[i].name[:], table)
		if err := s.get(optGetInfo, unsafe.Pointer(&out[i]), uint32(unsafe.Sizeof(out[i]))); err != nil && !errors.Is(err, unix.ENOENT) {
			return nil, fmt.Errorf("table %s: %w", table, err)
		}
	}
	return out, nil
}

func tableSizes(f model.Family) ([]tableSize, error) {
	s, err := openSocket(f)
	if err != nil {
		return nil, err
	}
	out, err := s.sizes()
	return out, errors.Join(err, unix.Close(s.fd))
}

// readTries is for tables that others change while they are read.
const readTries = 5

func readLegacy(f model.Family) (*legacy, error) {
	s, err := openSocket(f)
	if err != nil {
		return nil, err
	}
	defer unix.Close(s.fd)
	for try := 1; ; try++ {
		out, err := s.read(f)
		if err == nil || try == readTries || !errors.Is(err, unix.EAGAIN) {
			return out, err
		}
	}
}

func (s socket) read(f model.Family) (*legacy, error) {
	out := &legacy{summed: true}
	var err error
	if out.sizes, err = s.sizes(); err != nil {
		return nil, err
	}
	for i, size := range out.sizes {
		if size.bytes == 0 {
			continue
		}
		sum, err := s.sum(f, size)
		if err != nil {
			return nil, fmt.Errorf("table %s: %w", Tables[i], err)
		}
		out.ours += sum * uint64(i+1)
	}
	return out, nil
}

// entriesAt is where rules begin in struct ipt_get_entries, behind the table's name and their size.
const entriesAt = 40

// sum is of a table's rules, which may be tens of megabytes and are not left to the garbage collector.
func (s socket) sum(f model.Family, size tableSize) (uint64, error) {
	buffer, err := unix.Mmap(-1, 0, entriesAt+int(size.bytes), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return 0, err
	}
	defer unix.Munmap(buffer) //nolint:errcheck // fails for what is not mapped
	copy(buffer, size.name[:])
	binary.NativeEndian.PutUint32(buffer[len(size.name):], size.bytes)
	if err := s.get(optGetEntries, unsafe.Pointer(&buffer[0]), uint32(len(buffer))); err != nil {
		return 0, err
	}
	return sumOfOurs(f, &size, buffer[entriesAt:])
}

// A rule is a struct ipt_entry or ip6t_entry, with matches behind it, and a target, which begins as struct
// xt_entry_target: a size, a name, a revision. A chain begins with a rule whose target ERROR has its name. A jump is a
// target without a name, with the place of a chain's first rule.
type layout struct{ targetOffset, counters, head int }

var layouts = map[model.Family]layout{model.IPv4: {88, 96, 112}, model.IPv6: {140, 152, 168}}

const (
	countersBytes  = 16
	targetHead     = 32
	targetName     = 2
	targetNameSize = 29
)

// legacyRule is a rule of a table.
type legacyRule struct {
	at           int // the place where it stands
	data, target []byte
	layout
}

// eachLegacy goes through the rules of a table.
func eachLegacy(f model.Family, data []byte, do func(*legacyRule)) error {
	l := layouts[f]
	r := &legacyRule{layout: l} // one for all: there are some hundred thousand
	for at := 0; at < len(data); {
		rest := data[at:]
		if len(rest) < l.head {
			return fmt.Errorf("rule at %d is cut off", at)
		}
		target, next := int(binary.NativeEndian.Uint16(rest[l.targetOffset:])), int(binary.NativeEndian.Uint16(rest[l.targetOffset+2:]))
		if target < l.head || next < target+targetHead || next > len(rest) {
			return fmt.Errorf("rule at %d has its target at %d and its end at %d", at, target, next)
		}
		r.at, r.data, r.target = at, rest[:next], rest[target:next]
		do(r)
		at += next
	}
	return nil
}

func (r *legacyRule) targetIs(name string) bool {
	have := r.target[targetName : targetName+targetNameSize]
	return len(name) < len(have) && have[len(name)] == 0 && string(have[:len(name)]) == name
}

// begins is the chain that begins with this rule.
func (r *legacyRule) begins() (string, bool) {
	if !r.targetIs("ERROR") {
		return "", false
	}
	return cString(r.target[targetHead:]), true
}

// jump is the place that a rule leads to, false for one that leads to no chain.
func (r *legacyRule) jump() (int, bool) {
	if !r.targetIs("") || len(r.target) < targetHead+4 {
		return 0, false
	}
	to := int32(binary.NativeEndian.Uint32(r.target[targetHead:]))
	return int(to), to >= 0
}

func cString(data []byte) string {
	s, _, _ := bytes.Cut(data, []byte{0})
	return string(s)
}

// hashTo leaves out counters, and where the kernel came from, which stands before them.
func (r *legacyRule) hashTo(h *maphash.Hash, to string) {
	h.Write(r.data[:r.targetOffset+4])
	rest := r.data[r.counters+countersBytes:]
	if to != "" { // the place of a chain changes with those before it
		rest = rest[:len(rest)-len(r.target)]
		h.WriteString(to)
	}
	h.Write(rest)
}

var seed = maphash.MakeSeed()

// sumOfOurs does not depend on where chains stand, nor on chains of others, nor on what others have in the kernel's chains.
func sumOfOurs(f model.Family, size *tableSize, data []byte) (uint64, error) {
	ours := map[int]string{} // chains, by the place of their first rules
	err := eachLegacy(f, data, func(r *legacyRule) {
		if chain, ok := r.begins(); ok && IsOurs(chain) {
			ours[r.at+len(r.data)] = chain
		}
	})
	if err != nil {
		return 0, err
	}
	var sum uint64
	var h maphash.Hash
	h.SetSeed(seed)
	begin := func(chain string) {
		sum += h.Sum64()
		h.Reset()
		h.WriteString(chain)
	}
	inHook, inOurs := false, false
	err = eachLegacy(f, data, func(r *legacyRule) {
		if hook := slices.Index(size.entries[:], uint32(r.at)); hook >= 0 && size.validHooks&(1<<hook) != 0 {
			inHook, inOurs = true, false
			begin(fmt.Sprint("hook ", hook))
		}
		if _, ok := r.begins(); ok {
			chain := ours[r.at+len(r.data)]
			inHook, inOurs = false, chain != ""
			if inOurs {
				begin(chain)
			}
			return
		}
		to := ""
		if place, jumps := r.jump(); jumps {
			to = ours[place]
		}
		if inOurs || inHook && to != "" {
			r.hashTo(&h, to)
		}
	})
	return sum + h.Sum64(), err
}
