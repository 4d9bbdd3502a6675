package config

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	kubeproxy "k8s.io/kube-proxy/config/v1alpha1"
)

// leaf is a field of KubeProxyConfiguration that holds a value: its path in a file, and the names of the Go fields that
// lead to it.
type leaf struct {
	path  string
	names []string
}

func leaves(typ reflect.Type, prefix string, names []string) []leaf {
	var out []leaf
	for i := range typ.NumField() {
		f := typ.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		path, names := prefix+name, append(slices.Clip(names), f.Name)
		inModule := strings.HasPrefix(f.Type.PkgPath(), "k8s.io/kube-proxy/") || strings.HasPrefix(f.Type.PkgPath(), "k8s.io/component-base/config/")
		switch {
		case name == "": // apiVersion and kind
		case f.Type.Kind() == reflect.Struct && inModule:
			out = append(out, leaves(f.Type, path+".", names)...)
		default:
			out = append(out, leaf{path, names})
		}
	}
	return out
}

// readers are the fields that the code reads, as "IPTables.MasqueradeBit" and "MasqueradeBit", but for what only fills
// them in or looks for mistakes.
func readers(t *testing.T) map[string]bool {
	t.Helper()
	out := map[string]bool{}
	for _, pattern := range []string{"*.go", "../../cmd/orlop-proxy/*.go"} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			if name := filepath.Base(file); strings.HasSuffix(name, "_test.go") || name == "flags.go" || name == "validate.go" {
				continue
			}
			parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
			if err != nil {
				t.Fatal(err)
			}
			for _, decl := range parsed.Decls {
				if f, ok := decl.(*ast.FuncDecl); ok && !slices.Contains([]string{"Default", "defaultServers"}, f.Name.Name) {
					ast.Inspect(f, func(n ast.Node) bool { note(out, n); return true })
				}
			}
		}
	}
	return out
}

func note(out map[string]bool, n ast.Node) {
	field, ok := n.(*ast.SelectorExpr)
	if !ok {
		return
	}
	out[field.Sel.Name] = true
	switch from := field.X.(type) {
	case *ast.SelectorExpr:
		out[from.Sel.Name+"."+field.Sel.Name] = true
	case *ast.Ident: // of a part that was taken before, as in c := config.Conntrack
		out["?."+field.Sel.Name] = true
	}
}

// No field is without effect and without a word: it is read, or whoever sets it is warned.
func TestNoFieldIsSilent(t *testing.T) {
	read := readers(t)
	all := leaves(reflect.TypeFor[kubeproxy.KubeProxyConfiguration](), "", nil)
	if len(all) < 50 {
		t.Fatalf("only %d fields were found: %v", len(all), all)
	}
	known := map[string]bool{}
	for _, l := range all {
		_, told := ignored[l.path]
		for _, above := range []string{l.path, strings.SplitN(l.path, ".", 2)[0]} {
			known[above] = true
			if _, ok := ignored[above]; ok {
				told = true
			}
		}
		last := l.names[len(l.names)-1]
		isRead := read[last]
		if len(l.names) > 1 {
			part := l.names[len(l.names)-2]
			isRead = read[part+"."+last] || read[part] && read["?."+last]
		}
		if isRead == told {
			t.Errorf("%s: read %v, told to be without effect %v; want one of them", l.path, isRead, told)
		}
	}
	for path := range ignored {
		if !known[path] {
			t.Errorf("%s is told to be without effect, and is no field", path)
		}
	}
}
