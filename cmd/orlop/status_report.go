package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/structpb"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// statusReport is what `orlop status -o json` prints.
type statusReport struct {
	Name       string            `json:"name"`
	Version    string            `json:"version"`
	Conditions []conditionReport `json:"conditions"`
	Monitor    monitorReport     `json:"monitor"`
	Pending    []pendingReport   `json:"pending"`
	Pods       []podReport       `json:"pods"`
}

type conditionReport struct {
	Type    string `json:"type"`
	OK      bool   `json:"ok"`
	Message string `json:"message,omitempty"`
}

type monitorReport struct {
	AnsweredMillis float64 `json:"answeredMillis"`
	Containers     int     `json:"containers"`
	Running        int     `json:"running"`
	Err            string  `json:"err,omitempty"`
}

// pendingReport is what the daemon's verbose status has below "pending".
type pendingReport struct {
	Pod       string    `json:"pod"`
	Container string    `json:"container,omitempty"`
	State     string    `json:"state"`
	Err       string    `json:"err"`
	Since     time.Time `json:"since"`
	Tries     int       `json:"tries"`
}

type podReport struct {
	ID         string            `json:"id"`
	Namespace  string            `json:"namespace"`
	Name       string            `json:"name"`
	State      string            `json:"state"`
	CreatedAt  time.Time         `json:"createdAt"`
	IPs        []string          `json:"ips,omitempty"`
	Containers []containerReport `json:"containers,omitempty"`
}

type containerReport struct {
	ID        string    `json:"id"`
	Name      string    `json:"name"`
	State     string    `json:"state"`
	CreatedAt time.Time `json:"createdAt"`
	Image     string    `json:"image"`
}

func (r *statusReport) askVersion(ctx context.Context, c *client) error {
	v, err := c.Version(ctx, &cri.VersionRequest{})
	if err != nil {
		return err
	}
	r.Name, r.Version = v.GetRuntimeName(), v.GetRuntimeVersion()
	return nil
}

func (r *statusReport) askStatus(ctx context.Context, c *client) error {
	st, err := c.Status(ctx, &cri.StatusRequest{Verbose: true})
	if err != nil {
		return err
	}
	for _, cond := range st.GetStatus().GetConditions() {
		r.Conditions = append(r.Conditions, conditionReport{cond.GetType(), cond.GetStatus(), cond.GetMessage()})
	}
	if err := json.Unmarshal([]byte(st.GetInfo()["pending"]), &r.Pending); err != nil {
		return fmt.Errorf("status: info.pending: %w", err)
	}
	return nil
}

// askMonitor reports an error instead of returning it: the rest is wanted all the more.
func (r *statusReport) askMonitor(ctx context.Context, c *client) error {
	state := new(structpb.Struct)
	if err := c.conn.Invoke(ctx, "/"+adminName+"/MonitorStatus", new(emptypb.Empty), state); err != nil {
		r.Monitor.Err = err.Error()
		return nil
	}
	text, err := state.MarshalJSON()
	if err != nil {
		return err
	}
	return json.Unmarshal(text, &r.Monitor)
}

func (r *statusReport) askPods(ctx context.Context, c *client) error {
	list, err := c.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{})
	if err != nil {
		return err
	}
	r.Pods = make([]podReport, 0, len(list.GetItems()))
	for _, p := range list.GetItems() {
		pod := podReport{
			ID: p.GetId(), Namespace: p.GetMetadata().GetNamespace(), Name: p.GetMetadata().GetName(),
			State: word(p.GetState().String(), "SANDBOX_"), CreatedAt: time.Unix(0, p.GetCreatedAt()),
		}
		st, err := c.PodSandboxStatus(ctx, &cri.PodSandboxStatusRequest{PodSandboxId: p.GetId()})
		if err == nil { // else it has been removed since
			pod.IPs = addresses(st.GetStatus().GetNetwork())
		}
		r.Pods = append(r.Pods, pod)
	}
	return nil
}

func (r *statusReport) askContainers(ctx context.Context, c *client) error {
	list, err := c.ListContainers(ctx, &cri.ListContainersRequest{})
	if err != nil {
		return err
	}
	byPod := map[string][]containerReport{}
	for _, ctr := range list.GetContainers() {
		byPod[ctr.GetPodSandboxId()] = append(byPod[ctr.GetPodSandboxId()], containerReport{
			ID: ctr.GetId(), Name: ctr.GetMetadata().GetName(), State: word(ctr.GetState().String(), "CONTAINER_"),
			CreatedAt: time.Unix(0, ctr.GetCreatedAt()), Image: cmp.Or(ctr.GetImage().GetUserSpecifiedImage(), ctr.GetImage().GetImage()),
		})
	}
	for i := range r.Pods {
		r.Pods[i].Containers = byPod[r.Pods[i].ID]
	}
	return nil
}

// word makes a word for people of an enum's name: "SANDBOX_NOTREADY" is "notready".
func word(enum, prefix string) string { return strings.ToLower(strings.TrimPrefix(enum, prefix)) }

func addresses(n *cri.PodSandboxNetworkStatus) []string {
	if n.GetIp() == "" {
		return nil
	}
	ips := []string{n.GetIp()}
	for _, more := range n.GetAdditionalIps() {
		ips = append(ips, more.GetIp())
	}
	return ips
}
