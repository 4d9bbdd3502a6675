package spec

import (
	"fmt"
	"path"
	"slices"
	"strings"
	"unicode/utf8"
)

// defaultPath is for images that set none; without it no command could be found by its name.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// command sets arguments, terminal and working directory.
func (b *builder) command() error {
	args, err := b.args()
	if err != nil {
		return err
	}
	cwd, err := b.cwd()
	if err != nil {
		return err
	}
	p := b.spec.Process
	p.Args, p.Cwd, p.Terminal = args, cwd, b.cfg.GetTty()
	return nil
}

// args follows Kubernetes: a command replaces the image's entrypoint and its arguments, args replace its arguments.
func (b *builder) args() ([]string, error) {
	command, args := b.cfg.GetCommand(), b.cfg.GetArgs()
	if len(command) == 0 {
		command = b.in.Image.Entrypoint
		if len(args) == 0 {
			args = b.in.Image.Cmd
		}
	}
	argv := slices.Concat(command, args)
	if len(argv) == 0 {
		return nil, invalid("command", "", "neither the container nor its image says what to run; set command or args")
	}
	if argv[0] == "" {
		return nil, invalid("command[0]", "", "is empty; name a program")
	}
	for i, a := range argv {
		if err := plainText(fmt.Sprintf("argument %d", i), a); err != nil {
			return nil, err
		}
	}
	return argv, nil
}

// cwd takes the image's only if the config has none. Images made by hand have relative ones, which mean below /.
func (b *builder) cwd() (string, error) {
	if dir := b.cfg.GetWorkingDir(); dir != "" {
		return cleanPath("working_dir", dir)
	}
	return cleanPath("image working directory", path.Join("/", b.in.Image.WorkingDir))
}

// plainText refuses what execve(2) or the JSON that a spec travels in would change without a word. CRI 0.37 made the
// value of an environment variable bytes, but the OCI specification, which other runtimes and hooks read, has not: a
// program that finds other bytes than were asked for is worse off than one that is told why it does not run.
func plainText(field, s string) error {
	if strings.ContainsRune(s, 0) {
		return invalid(field, s, "has a NUL byte, where the kernel would cut it; remove it")
	}
	if !utf8.ValidString(s) {
		return invalid(field, s, "is not UTF-8, which an OCI spec can't hold; encode it, as base64 for example")
	}
	return nil
}

// env is an environment in which a later value replaces an earlier one in its place.
type env struct {
	list []string
	at   map[string]int
}

func (e *env) set(key, value string) {
	if i, ok := e.at[key]; ok {
		e.list[i] = key + "=" + value
		return
	}
	e.at[key] = len(e.list)
	e.list = append(e.list, key+"="+value)
}

func (e *env) missing(key string) bool {
	i, ok := e.at[key]
	return !ok || e.list[i] == key+"="
}

// environment: what we know comes first, and the daemon's defaults, the image and the config each replace what was
// there before.
func (b *builder) environment() error {
	e := &env{at: map[string]int{}}
	e.set("PATH", defaultPath)
	if b.in.Hostname != "" {
		e.set("HOSTNAME", b.in.Hostname)
	}
	if b.cfg.GetTty() {
		e.set("TERM", "xterm")
	}
	if err := b.addLines(e, "default environment", b.in.DefaultEnv); err != nil {
		return err
	}
	if err := b.addLines(e, "image environment", b.in.Image.Env); err != nil {
		return err
	}
	for i, kv := range b.cfg.GetEnvs() {
		field := fmt.Sprintf("envs[%d].key", i)
		key, value := kv.GetKey(), string(kv.GetValue())
		if key == "" || strings.Contains(key, "=") {
			return invalid(field, key, "a name is not empty and has no =; rename it")
		}
		if err := plainText(field, key); err != nil {
			return err
		}
		if err := plainText("environment variable "+key, value); err != nil {
			return err
		}
		e.set(key, value)
	}
	// OCI runtimes look up an empty HOME themselves, some in the host's passwd file.
	if e.missing("HOME") {
		home := b.in.User.Home
		if home == "" {
			home = "/"
		}
		e.set("HOME", home)
	}
	b.spec.Process.Env = e.list
	return nil
}

// addLines takes KEY=VALUE. A line without a key or "=" is left out with a note: images with such lines run elsewhere.
func (b *builder) addLines(e *env, field string, lines []string) error {
	for i, line := range lines {
		if err := plainText(fmt.Sprintf("%s[%d]", field, i), line); err != nil {
			return err
		}
		key, value, ok := strings.Cut(line, "=")
		if !ok || key == "" {
			b.note("%s line %.100q left out: it is not of the form NAME=VALUE", field, line)
			continue
		}
		e.set(key, value)
	}
	return nil
}

// user sets the identity that the server resolved, and refuses the two combinations that the CRI rules out.
func (b *builder) user() error {
	byID, byName := b.sec.GetRunAsUser(), b.sec.GetRunAsUsername()
	if group := b.sec.GetRunAsGroup(); group != nil && byID == nil && byName == "" {
		return invalid("linux.security_context.run_as_group", fmt.Sprint(group.GetValue()),
			"needs a user; set run_as_user or run_as_username too")
	}
	if byID != nil && byName != "" {
		return invalid("linux.security_context.run_as_username", byName, "run_as_user is set too; set one of them")
	}
	u := &b.spec.Process.User
	u.UID, u.GID = b.in.User.UID, b.in.User.GID
	u.AdditionalGids = slices.Clone(b.in.User.AdditionalGIDs)
	b.spec.Process.NoNewPrivileges = b.sec.GetNoNewPrivs()
	return nil
}

// limits sets rlimits and the OOM score. The score is always written down: unset, the container would inherit the
// monitor's own, which is the lowest there is.
func (b *builder) limits() error {
	b.spec.Process.Rlimits = slices.Clone(b.in.DefaultUlimits)
	asked := b.cfg.GetLinux().GetResources().GetOomScoreAdj()
	if asked < -1000 || asked > 1000 {
		return invalid("linux.resources.oom_score_adj", fmt.Sprint(asked), "the kernel takes -1000 to 1000")
	}
	score := b.in.Host.lowestOOMScore(int(asked))
	if score != int(asked) {
		b.note("OOM score %d raised to %d: the daemon has no CAP_SYS_RESOURCE and can't go below its own", asked, score)
	}
	b.spec.Process.OOMScoreAdj = &score
	return nil
}

// lowestOOMScore is the wish, or what the kernel allows us if that is higher; see proc_pid_oom_score_adj(5).
func (h Host) lowestOOMScore(wish int) int {
	if h.OOMScoreFloor {
		return max(wish, h.OOMScoreAdj)
	}
	return wish
}
