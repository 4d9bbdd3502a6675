package api

import (
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/orlop/orlop/kubelet/runtime"
)

// podsOf are pods made of their containers' labels, with names and images and no more.
func podsOf(containers []*cri.Container) []*v1.Pod {
	var pods []*v1.Pod
	byUID := map[types.UID]*v1.Pod{}
	for _, c := range containers {
		uid := types.UID(c.Labels[runtime.PodUIDLabel])
		if uid == "" {
			continue
		}
		p := byUID[uid]
		if p == nil {
			p = &v1.Pod{}
			p.UID, p.Name, p.Namespace = uid, c.Labels[runtime.PodNameLabel], c.Labels[runtime.PodNamespaceLabel]
			byUID[uid] = p
			pods = append(pods, p)
		}
		p.Spec.Containers = append(p.Spec.Containers, v1.Container{
			Name: c.Labels[runtime.ContainerNameLabel], Image: c.GetImage().GetImage(),
		})
	}
	return pods
}
