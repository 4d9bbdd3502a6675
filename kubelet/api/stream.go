package api

import (
	"cmp"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/util/proxy"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming"
	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/streaming/pkg/httpstream/wsstream"

	"github.com/orlop/orlop/kubelet/pod"
	"github.com/orlop/orlop/kubelet/runtime"
)

// pod finds the pod of a path; nil after it has answered that there is none.
func (s *Server) pod(w http.ResponseWriter, r *http.Request) *v1.Pod {
	p := s.cfg.Host.PodByName(r.PathValue("namespace"), r.PathValue("pod"))
	if uid := r.PathValue("uid"); p == nil || (uid != "" && uid != string(p.UID) && uid != string(pod.UID(p))) {
		http.Error(w, "pod does not exist", http.StatusNotFound)
		return nil
	}
	return p
}

// container finds the running container of a path; "" after it has answered that there is none.
func (s *Server) container(w http.ResponseWriter, r *http.Request) string {
	p := s.pod(w, r)
	if p == nil {
		return ""
	}
	id := runningContainer(p, r.PathValue("container"))
	if id == "" {
		http.Error(w, fmt.Sprintf("container not found (%q)", r.PathValue("container")), http.StatusNotFound)
	}
	return id
}

func (s *Server) exec(w http.ResponseWriter, r *http.Request) {
	o, err := remotecommand.NewOptions(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	id := s.container(w, r)
	if id == "" {
		return
	}
	reply, err := s.cfg.Runtime.Exec(r.Context(), &cri.ExecRequest{
		ContainerId: id, Cmd: r.URL.Query()["command"], Tty: o.TTY, Stdin: o.Stdin, Stdout: o.Stdout, Stderr: o.Stderr,
	})
	s.proxy(w, r, reply.GetUrl(), err)
}

func (s *Server) attach(w http.ResponseWriter, r *http.Request) {
	o, err := remotecommand.NewOptions(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	id := s.container(w, r)
	if id == "" {
		return
	}
	reply, err := s.cfg.Runtime.Attach(r.Context(), &cri.AttachRequest{
		ContainerId: id, Tty: o.TTY, Stdin: o.Stdin, Stdout: o.Stdout, Stderr: o.Stderr,
	})
	s.proxy(w, r, reply.GetUrl(), err)
}

func (s *Server) portForward(w http.ResponseWriter, r *http.Request) {
	o := &portforward.V4Options{}
	if !wsstream.IsWebSocketRequestWithTunnelingProtocol(r) { // there the ports come inside
		var err error
		if o, err = portforward.NewV4Options(r); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
	}
	p := s.pod(w, r)
	if p == nil {
		return
	}
	id, err := s.sandbox(r, p)
	if err != nil {
		streaming.WriteError(err, w)
		return
	}
	reply, err := s.cfg.Runtime.PortForward(r.Context(), &cri.PortForwardRequest{PodSandboxId: id, Port: o.Ports})
	s.proxy(w, r, reply.GetUrl(), err)
}

// sandbox is the newest of the pod that is ready.
func (s *Server) sandbox(r *http.Request, p *v1.Pod) (string, error) {
	reply, err := s.cfg.Runtime.ListPodSandbox(r.Context(), &cri.ListPodSandboxRequest{Filter: &cri.PodSandboxFilter{
		State:         &cri.PodSandboxStateValue{State: cri.PodSandboxState_SANDBOX_READY},
		LabelSelector: map[string]string{runtime.PodUIDLabel: string(pod.UID(p))},
	}})
	if err != nil {
		return "", err
	}
	if len(reply.Items) == 0 {
		return "", fmt.Errorf("pod %s has no network yet, or no more", p.Name)
	}
	newest := slices.MaxFunc(reply.Items, func(a, b *cri.PodSandbox) int { return cmp.Compare(a.CreatedAt, b.CreatedAt) })
	return newest.Id, nil
}

// proxy hands the connection over to the server to which the runtime's answer leads.
func (s *Server) proxy(w http.ResponseWriter, r *http.Request, location string, err error) {
	if err != nil {
		streaming.WriteError(err, w)
		return
	}
	u, err := url.Parse(location)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	const wrapTransport, upgradeRequired = false, true
	proxy.NewUpgradeAwareHandler(u, nil, wrapTransport, upgradeRequired, failed{s}).ServeHTTP(w, r)
}

// failed answers for a proxy that has no answer.
type failed struct{ s *Server }

func (f failed) Error(w http.ResponseWriter, r *http.Request, err error) {
	f.s.cfg.Log.Debug("stream failed", "path", r.URL.Path, "err", err)
	code := http.StatusInternalServerError
	if known := apierrors.APIStatus(nil); errors.As(err, &known) {
		code = int(known.Status().Code)
	}
	http.Error(w, err.Error(), code)
}

// run serves POST /run: a command to its end, with all it wrote in the answer.
func (s *Server) run(w http.ResponseWriter, r *http.Request) {
	id := s.container(w, r)
	if id == "" {
		return
	}
	cmd := strings.Split(r.URL.Query().Get("cmd"), " ")
	reply, err := s.cfg.Runtime.ExecSync(r.Context(), &cri.ExecSyncRequest{ContainerId: id, Cmd: cmd})
	switch {
	case err != nil:
		http.Error(w, err.Error(), http.StatusInternalServerError)
	case reply.ExitCode != 0:
		text := fmt.Sprintf("command '%s' exited with %d: %s", strings.Join(cmd, " "), reply.ExitCode, reply.Stderr)
		http.Error(w, text, http.StatusInternalServerError)
	default:
		w.Header().Set("Content-Type", "application/json") // as kubelet says, though it is what the command wrote
		w.Write(reply.Stdout)
		w.Write(reply.Stderr)
	}
}

// runningPods serves GET /runningpods/: what the runtime runs, whoever wants it.
func (s *Server) runningPods(w http.ResponseWriter, r *http.Request) {
	reply, err := s.cfg.Runtime.ListContainers(r.Context(), &cri.ListContainersRequest{Filter: &cri.ContainerFilter{
		State: &cri.ContainerStateValue{State: cri.ContainerState_CONTAINER_RUNNING},
	}})
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	s.podList(w, podsOf(reply.Containers))
}
