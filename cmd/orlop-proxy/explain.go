package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/orlop/orlop/proxy"
	"github.com/orlop/orlop/proxy/config"
	"github.com/orlop/orlop/proxy/explain"
	"github.com/orlop/orlop/proxy/ipvs"
	"github.com/orlop/orlop/proxy/model"
	"github.com/orlop/orlop/proxy/nft"
	"github.com/orlop/orlop/proxy/xtables"
)

// explainPath is where a running proxy explains, at its metrics server.
const explainPath = "/explain"

func newExplainCommand() *cobra.Command {
	flags := &config.Flags{}
	output := ""
	cmd := &cobra.Command{
		Use:   "explain [NAMESPACE/]SERVICE[:PORT]",
		Short: "Say where packets to a Service go from this node, and why",
		Long: "Asks the proxy that runs on this node where packets to a Service go from here, which endpoints serve it and why others " +
			"do not, and compares with the rules that the kernel has.",
		Example: "  orlop proxy explain kube-system/kube-dns:dns\n  orlop proxy explain web -o json",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if output != "" && output != "json" {
				return fmt.Errorf("-o %q: write json, or leave it out", output)
			}
			c, err := config.Load(flags.File)
			if err != nil {
				return err
			}
			flags.Apply(c)
			c.Default()
			return ask(cmd.Context(), cmd.OutOrStdout(), c.MetricsBindAddress, args[0], output)
		},
	}
	flags.AddAddressTo(cmd.Flags())
	cmd.Flags().StringVarP(&output, "output", "o", "", "json: for machines")
	return cmd
}

// ask has the running proxy explain.
func ask(ctx context.Context, w io.Writer, addr, service, output string) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	u := url.URL{Scheme: "http", Host: addr, Path: explainPath, RawQuery: url.Values{"service": {service}}.Encode()}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return err
	}
	answer, err := http.DefaultClient.Do(req)
	if err != nil {
		return fmt.Errorf("no proxy answers at %s; is it running, and is its metricsBindAddress another? %w", addr, err)
	}
	defer answer.Body.Close()
	data, err := io.ReadAll(answer.Body)
	switch {
	case err != nil:
		return err
	case answer.StatusCode != http.StatusOK:
		return fmt.Errorf("%s", strings.TrimSpace(string(data)))
	case output == "json":
		_, err = w.Write(data)
		return err
	}
	var reports []explain.Report
	if err := json.Unmarshal(data, &reports); err != nil {
		return fmt.Errorf("what answers at %s is no Orlop proxy: %w", addr, err)
	}
	return explain.Write(w, reports)
}

// explainer serves what ask asks for.
type explainer struct {
	mode  string
	proxy *proxy.Proxy
}

func (e explainer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	name, port := parseService(r.URL.Query().Get("service"))
	all, network := e.proxy.Explain(name)
	if len(network.Families) == 0 {
		http.Error(w, "the first rules are being set; ask again in a moment", http.StatusServiceUnavailable)
		return
	}
	if len(all) == 0 {
		http.Error(w, fmt.Sprintf("service %s: this node's proxy has none of that name, or it has no ClusterIP (headless, ExternalName)", name), http.StatusNotFound)
		return
	}
	all = slices.DeleteFunc(all, func(x model.Explanation) bool {
		return port != "" && port != x.Port.Key.Port && !hasPort(x.Port, port)
	})
	if len(all) == 0 {
		http.Error(w, fmt.Sprintf("service %s has no port %s", name, port), http.StatusNotFound)
		return
	}
	if e.mode == config.IPVS {
		for i, x := range all {
			all[i].Port = ipvs.Served(x.Port)
		}
	}
	kernel, err := e.kernel(r.Context(), network)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	out := json.NewEncoder(w)
	out.SetIndent("", "  ")
	_ = out.Encode(explain.Of(r.Context(), all, network, kernel)) // whoever asked has gone
}

func hasPort(p *model.Port, number string) bool {
	return slices.ContainsFunc(p.Frontends, func(f model.Frontend) bool { return fmt.Sprint(f.Port) == number })
}

func parseService(text string) (model.Name, string) {
	text, port, _ := strings.Cut(text, ":")
	namespace, name, ok := strings.Cut(text, "/")
	if !ok {
		namespace, name = "default", text
	}
	return model.Name{Namespace: namespace, Name: name}, port
}

// kernel reads the rules back.
func (e explainer) kernel(ctx context.Context, network model.Network) (map[model.Family]explain.Kernel, error) {
	out := map[model.Family]explain.Kernel{}
	for _, f := range network.Families {
		var err error
		switch e.mode {
		case config.NFTables:
			out[f], err = nft.Read(f)
		case config.IPTables:
			out[f], err = xtables.Read(ctx, f)
		case config.IPVS:
			out[f], err = ipvs.Read(ctx, f)
		}
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}
