package keeper

import (
	"os"
	"time"

	"github.com/orlop/orlop/conmon"
	"github.com/orlop/orlop/conmon/child"
)

// follow provides for our own end, before each start of a worker. Containers that are children of this process then,
// or of none of ours, get a parent that is not ours when it is killed. Where their pidfds won't tell their status, the
// kernel is asked to tell it to a socket, which the worker has open, too.
func (k *keeper) follow() {
	if child.KeepsExit() {
		return
	}
	k.mu.Lock()
	var pids []int
	for _, c := range k.held {
		if c.pid != 0 && !c.ended {
			pids = append(pids, c.pid)
		}
	}
	node := k.holdingLocked(Node)
	socket := node.files[FileEvents]
	k.mu.Unlock()
	if socket == nil && len(pids) == 0 {
		return // and nobody on this machine pays for events
	}
	if socket == nil {
		events, err := child.OpenEvents()
		if err != nil {
			k.log.Warn("exits may be missed after another kill", "err", err)
			return
		}
		socket = events.Socket
		k.mu.Lock()
		node.files[FileEvents] = socket
		k.mu.Unlock()
		k.readEvents(child.Events{Socket: socket})
	}
	if err := (child.Events{Socket: socket}).Follow(pids); err != nil {
		k.log.Warn("exits may be missed after another kill", "err", err)
	}
}

func (k *keeper) readEvents(events child.Events) {
	go func() {
		for {
			if err := events.Read(k.told); err != nil {
				k.log.Error("no more exits are told by the kernel", "err", err)
				return
			}
		}
	}()
}

// told returns when the exit that the kernel tells of has been recorded.
func (k *keeper) told(pid int, exit conmon.Exit) {
	k.mu.Lock()
	id := k.ownerLocked(pid)
	var pidfd *os.File
	if id != "" {
		pidfd = k.held[id].files["pidfd"]
	}
	k.mu.Unlock()
	if id == "" || pidfd == nil || !endsSoon(pidfd) {
		return
	}
	if isOurs(pid) {
		k.reap()
		return
	}
	k.ended(id, exit)
}

// threadTime bounds how long the threads of a process may take to follow the first one.
const threadTime = time.Second

// endsSoon is false for a process whose first thread has left it, and which goes on: its status is not known yet.
func endsSoon(pidfd *os.File) bool {
	if err := pidfd.SetReadDeadline(time.Now().Add(threadTime)); err != nil {
		return false
	}
	return child.Ended(pidfd) == nil
}

// watchForeign waits for containers that had fallen to the keeper which is gone now, and so to a process above us.
func (k *keeper) watchForeign() {
	var ids []string
	var processes []child.Foreign
	for id, c := range k.held {
		pidfd := c.files["pidfd"]
		if c.pid == 0 || pidfd == nil {
			continue
		}
		if isOurs(c.pid) {
			continue
		}
		f, err := child.OpenForeign(pidfd, c.pid)
		if err != nil {
			k.log.Error("container can't be watched", "container", id, "err", err)
			continue
		}
		ids, processes = append(ids, id), append(processes, f)
	}
	go func() {
		err := child.Watch(processes, func(i int, exit conmon.Exit) { k.strangerEnded(ids[i], exit) })
		if err != nil {
			k.log.Error("containers can't be watched", "containers", ids, "err", err)
		}
	}()
}

func (k *keeper) strangerEnded(id string, exit conmon.Exit) {
	if exit.Unknown { // told is about to be
		time.AfterFunc(2*threadTime, func() { k.ended(id, exit) })
		return
	}
	go k.ended(id, exit)
}

// isOurs tells whether reap will see the end of a process.
func isOurs(pid int) bool {
	parent, err := child.Parent(pid)
	return err == nil && parent == os.Getpid()
}

// watchStranger waits for the end of a container whose keeper and worker were killed both: it is nobody's of us. It does not race for its status as
// watchForeign does, with a thread for each of them: where the kernel does not keep it, it may be unknown.
func (k *keeper) watchStranger(id string, pid int, pidfd *os.File) error {
	f, err := child.OpenForeign(pidfd, pid)
	if err != nil {
		return err
	}
	go func() {
		if exit, err := f.Await(pidfd); err == nil { // else nobody wants to know any more
			k.strangerEnded(id, exit)
		}
	}()
	return nil
}
