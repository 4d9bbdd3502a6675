package keeper

import "errors"

var errUnrecorded = errors.New("exits are known that could not be recorded yet; make room on the disk of the exit records")

// upgrade notes what this process is to go on as. What it knows alone must not get lost.
func (k *keeper) upgrade(program string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.insists > 0 {
		return errUnrecorded
	}
	k.program = program
	return nil
}

func (k *keeper) insist(n int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.insists += n
}

// becomeNext goes on as another program, if that was asked for: the same process with the same children, which gives the
// same descriptors to itself. If it returns, nothing has changed. Children that end meanwhile are reaped after it.
func (k *keeper) becomeNext() error {
	k.reaping.Lock()
	defer k.reaping.Unlock()
	k.recording.Lock()
	defer k.recording.Unlock()
	k.mu.Lock()
	defer k.mu.Unlock()
	program := k.program
	k.program = ""
	switch {
	case program == "":
		return nil
	case k.insists > 0:
		return errUnrecorded
	}
	h, err := k.handoffLocked()
	if err != nil {
		return err
	}
	k.log.Info("becoming another program", "program", program)
	return Become(program, k.cfg, h)
}

func (k *keeper) handoffLocked() (Handoff, error) {
	h := Handoff{Held: map[string]Held{}}
	var err error
	if h.Listener, err = FileNumber(k.listener); err != nil {
		return h, err
	}
	if h.Lock, err = FileNumber(k.lock); err != nil {
		return h, err
	}
	for id, c := range k.held {
		held := Held{Pid: c.pid, OOM: c.oom, Ended: c.ended, Files: map[string]int{}}
		for name, f := range c.files {
			if held.Files[name], err = FileNumber(f); err != nil {
				return h, err
			}
		}
		h.Held[id] = held
	}
	return h, nil
}
