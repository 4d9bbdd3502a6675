package config

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
)

// Mistake is one thing wrong in the configuration.
type Mistake struct {
	Place
	Key     string // with its table; "" for text that is no TOML
	Value   string // as TOML, "" if it does not matter
	Problem string
	Remedy  string
}

// Place is where a value was written. The zero Place is the built-in default.
type Place struct {
	File string
	Line int // from 1
}

func (p Place) String() string {
	if p.File == "" {
		return "default"
	}
	return fmt.Sprintf("%s:%d", p.File, p.Line)
}

func (m *Mistake) Error() string {
	var b strings.Builder
	if m.File != "" {
		b.WriteString(m.Place.String() + ": ")
	}
	if m.Key != "" {
		b.WriteString(m.Key)
		if m.Value != "" {
			b.WriteString(" = " + m.Value)
		}
		b.WriteString(": ")
	}
	b.WriteString(m.Problem)
	if m.Remedy != "" {
		b.WriteString("; " + m.Remedy)
	}
	return b.String()
}

// Files lists what is to be read, in order: path, and then each *.toml in dir by name. An empty path means
// DefaultPath, which need not exist; an empty dir means path + ".d", which need not exist either.
func Files(path, dir string) ([]string, error) {
	mustPath, mustDir := path != "", dir != ""
	path = cmp.Or(path, DefaultPath)
	dir = cmp.Or(dir, path+".d")
	var files []string
	switch _, err := os.Stat(path); {
	case err == nil:
		files = append(files, path)
	case mustPath || !errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("config: %w", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil && (mustDir || !errors.Is(err, fs.ErrNotExist)) {
		return nil, fmt.Errorf("config: %w", err)
	}
	for _, e := range entries { // ReadDir sorts by name
		if !e.IsDir() && filepath.Ext(e.Name()) == ".toml" {
			files = append(files, filepath.Join(dir, e.Name()))
		}
	}
	return files, nil
}

// Load reads files over the defaults, a later one winning key by key (a list is replaced as a whole), and validates
// the result. places says where each key that is not at its default was written. The error joins a [*Mistake] for
// each thing wrong in any of the files.
func Load(files []string) (c Config, places map[string]Place, err error) {
	c, places = Defaults(), map[string]Place{}
	var mistakes []*Mistake
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			return c, nil, fmt.Errorf("config: %w", err)
		}
		mistakes = append(mistakes, c.merge(f, data, places)...)
	}
	for _, k := range Keys() {
		if m := k.mistake(&c); m != nil {
			m.Place = places[k.Name]
			mistakes = append(mistakes, m)
		}
	}
	return c, places, join(mistakes)
}

func join(mistakes []*Mistake) error {
	slices.SortStableFunc(mistakes, func(a, b *Mistake) int {
		return cmp.Or(cmp.Compare(a.File, b.File), cmp.Compare(a.Line, b.Line))
	})
	errs := make([]error, len(mistakes))
	for i, m := range mistakes {
		errs[i] = m
	}
	return errors.Join(errs...)
}

// merge sets what data, the content of file, says. A key with a mistake keeps the value it had.
func (c *Config) merge(file string, data []byte, places map[string]Place) []*Mistake {
	var tree map[string]any
	if err := toml.Unmarshal(data, &tree); err != nil {
		return []*Mistake{syntaxMistake(file, err)}
	}
	lines := keyLines(data)
	values := map[string]any{}
	flatten("", tree, values)
	var mistakes []*Mistake
	for _, name := range slices.Sorted(maps.Keys(values)) {
		at := Place{file, lines[name]}
		if m := c.set(name, values[name]); m != nil {
			m.Place = at
			mistakes = append(mistakes, m)
			continue
		}
		places[name] = at
	}
	return mistakes
}

func syntaxMistake(file string, err error) *Mistake {
	m := &Mistake{Place: Place{File: file, Line: 1}, Problem: "not TOML: " + err.Error(), Remedy: "see https://toml.io"}
	var decode *toml.DecodeError
	if errors.As(err, &decode) {
		m.Line, _ = decode.Position()
		m.Problem = strings.TrimPrefix(decode.Error(), "toml: ")
	}
	return m
}

// flatten turns tables in tables into dotted names. An empty table stays as itself, so that its name is looked at.
func flatten(prefix string, tree map[string]any, into map[string]any) {
	for name, v := range tree {
		if sub, ok := v.(map[string]any); ok && len(sub) > 0 {
			flatten(prefix+name+".", sub, into)
		} else {
			into[prefix+name] = v
		}
	}
}

// keyLines finds the line of every key and table in a document that is known to be valid.
func keyLines(data []byte) map[string]int {
	lines := map[string]int{}
	var p unstable.Parser
	p.Reset(data)
	table := ""
	for p.NextExpression() {
		e := p.Expression()
		switch e.Kind {
		case unstable.Table, unstable.ArrayTable:
			table = keyLine(&p, lines, "", e.Key()) + "."
		case unstable.KeyValue:
			keyValueLines(&p, lines, table, e)
		}
	}
	return lines
}

func keyValueLines(p *unstable.Parser, lines map[string]int, table string, kv *unstable.Node) {
	name := keyLine(p, lines, table, kv.Key())
	if kv.Value().Kind != unstable.InlineTable {
		return
	}
	for it := kv.Value().Children(); it.Next(); {
		keyValueLines(p, lines, name+".", it.Node())
	}
}

// keyLine notes the line of a dotted key below prefix and of each table that it goes through, and returns its full
// name, built as flatten builds it: a key may be the empty string.
func keyLine(p *unstable.Parser, lines map[string]int, prefix string, key unstable.Iterator) string {
	name := ""
	for key.Next() {
		name = prefix + string(key.Node().Data)
		if lines[name] == 0 {
			lines[name] = p.Shape(key.Node().Raw).Start.Line
		}
		prefix = name + "."
	}
	return name
}

func (c *Config) set(name string, v any) *Mistake {
	for _, k := range Keys() {
		if k.Name == name {
			return k.set(c, v)
		}
		if table, _ := k.Table(); table == name {
			if _, empty := v.(map[string]any); empty {
				return nil
			}
			return &Mistake{Key: name, Problem: "is a table, not a value", Remedy: "write [" + name + "] on a line of its own, and keys below it"}
		}
	}
	return &Mistake{Key: name, Problem: "unknown key", Remedy: suggest(name)}
}

// suggest names the key that was likely meant.
func suggest(name string) string {
	best, bestDistance := "", 4 // more than three slips are another word
	_, last := Key{Name: name}.Table()
	for _, k := range Keys() {
		if _, own := k.Table(); own == last {
			return fmt.Sprintf("did you mean %s?", k.Name) // right name, wrong table
		}
		if d := distance(k.Name, name); d < bestDistance {
			best, bestDistance = k.Name, d
		}
	}
	if best != "" {
		return fmt.Sprintf("did you mean %s?", best)
	}
	return "remove it; `orlop config` lists all keys"
}

// distance is how many bytes must be put in, taken out or replaced to make b from a (Levenshtein).
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			replace := diagonal
			if a[i] != b[j] {
				replace++
			}
			diagonal = row[j+1]
			row[j+1] = min(replace, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}

// set stores v, as go-toml decoded it, if it has the right type.
func (k Key) set(c *Config, v any) *Mistake {
	bad := func(remedy string) *Mistake {
		return &Mistake{Key: k.Name, Problem: "is " + typeName(v), Remedy: remedy}
	}
	switch p := k.field(c).(type) {
	case *string:
		s, ok := v.(string)
		if !ok {
			return bad(`write a string in quotes`)
		}
		*p = s
	case *int:
		n, ok := v.(int64)
		if !ok || int64(int(n)) != n {
			return bad("write a whole number without quotes")
		}
		*p = int(n)
	case *int64:
		n, ok := v.(int64)
		if !ok {
			return bad("write a whole number without quotes")
		}
		*p = n
	case *time.Duration:
		s, ok := v.(string)
		if !ok {
			return bad(`write a duration in quotes, such as "30m" or "4h"`)
		}
		d, err := time.ParseDuration(s)
		if err != nil {
			return &Mistake{Key: k.Name, Value: format(s), Problem: "is no duration", Remedy: `write a number and a unit, such as "30m" or "4h"`}
		}
		*p = d
	case *[]string:
		list, ok := stringList(v)
		if !ok {
			return bad(`write a list of strings: ["one", "two"]`)
		}
		*p = list
	default:
		panic(fmt.Sprintf("config: key %s has a field of unknown type %T", k.Name, p))
	}
	return nil
}

func stringList(v any) ([]string, bool) {
	list, ok := v.([]any)
	out := make([]string, len(list))
	for i := range list {
		if out[i], ok = list[i].(string); !ok {
			return nil, false
		}
	}
	return out, ok
}

// typeName says what a TOML value is, for people.
func typeName(v any) string {
	switch v.(type) {
	case string:
		return "a string"
	case int64:
		return "a number"
	case float64:
		return "a number with a fraction"
	case bool:
		return "a boolean"
	case []any:
		return "a list"
	case map[string]any:
		return "a table"
	}
	return "a date or time"
}
