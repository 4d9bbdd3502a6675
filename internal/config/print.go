package config

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
)

// lineWidth is where comments in the default file are wrapped.
const lineWidth = 100

// value is the key's value in c, as a string, int64, []string or time.Duration.
func (k Key) value(c *Config) any {
	switch p := k.field(c).(type) {
	case *string:
		return *p
	case *int:
		return int64(*p)
	case *int64:
		return *p
	case *time.Duration:
		return *p
	case *[]string:
		return *p
	default:
		panic(fmt.Sprintf("config: key %s has a field of unknown type %T", k.Name, p))
	}
}

// Format is the key's value in c, written as TOML.
func (k Key) Format(c *Config) string { return format(k.value(c)) }

func format(v any) string {
	switch v := v.(type) {
	case string:
		return quote(v)
	case int64:
		return strconv.FormatInt(v, 10)
	case time.Duration:
		return quote(shortDuration(v))
	case []string:
		quoted := make([]string, len(v))
		for i, s := range v {
			quoted[i] = quote(s)
		}
		return "[" + strings.Join(quoted, ", ") + "]"
	}
	panic(fmt.Sprintf("config: cannot format a %T", v))
}

// quote writes a TOML basic string (https://toml.io/en/v1.0.0#string); strconv.Quote would use escapes that TOML does
// not have.
func quote(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case r < ' ' || r == 0x7f:
			fmt.Fprintf(&b, "\\u%04X", r)
		default:
			b.WriteRune(r)
		}
	}
	b.WriteByte('"')
	return b.String()
}

// shortDuration is Duration.String without the zeros at its end: "4h", not "4h0m0s".
func shortDuration(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// WriteDefault writes the default file: every key, its meaning above it, and its default.
func WriteDefault(w io.Writer) error {
	var b strings.Builder
	d := Defaults()
	for _, t := range Tables() {
		if t.Name != "" {
			fmt.Fprintf(&b, "\n\n[%s]\n", t.Name)
		}
		comment(&b, t.Doc)
		for _, k := range Keys() {
			table, name := k.Table()
			if table != t.Name {
				continue
			}
			b.WriteByte('\n')
			comment(&b, k.Doc)
			fmt.Fprintf(&b, "%s = %s\n", name, k.Format(&d))
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func comment(b *strings.Builder, text string) {
	line := "#"
	for word := range strings.FieldsSeq(text) {
		if len(line)+1+len(word) > lineWidth {
			b.WriteString(line + "\n")
			line = "#"
		}
		line += " " + word
	}
	b.WriteString(line + "\n")
}
