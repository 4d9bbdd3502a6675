package kubetest

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
)

// single serves requests for one object.
func (s *Server) single(w http.ResponseWriter, r *http.Request, t target) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		s.refuse(w, err)
		return
	}
	s.mu.Lock()
	o, err := s.doLocked(r, t, body)
	s.mu.Unlock()
	if err != nil {
		s.refuse(w, err)
		return
	}
	text, media := s.encode(r, o)
	w.Header().Set("Content-Type", media)
	if r.Method == http.MethodPost {
		w.WriteHeader(http.StatusCreated)
	}
	_, _ = w.Write(text)
}

func (s *Server) refuse(w http.ResponseWriter, err error) {
	status := apierrors.NewInternalError(err).ErrStatus
	if known := apierrors.APIStatus(nil); errors.As(err, &known) {
		status = known.Status()
	}
	status.TypeMeta = metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}
	w.Header().Set("Content-Type", runtime.ContentTypeJSON)
	w.WriteHeader(int(status.Code))
	_ = json.NewEncoder(w).Encode(status)
}

func (s *Server) doLocked(r *http.Request, t target, body []byte) (Object, error) {
	resource := schema.GroupResource{Resource: t.plural}
	have := s.objects[t.plural][t.name]
	if have == nil && r.Method != http.MethodPost {
		return nil, apierrors.NewNotFound(resource, t.name.Name)
	}
	switch r.Method {
	case http.MethodGet:
		return have, nil
	case http.MethodPost:
		return s.createLocked(resource, t.name.Namespace, body)
	case http.MethodPut:
		o, err := s.decode(body)
		if err == nil && o.GetResourceVersion() != "" && o.GetResourceVersion() != have.GetResourceVersion() {
			err = apierrors.NewConflict(resource, t.name.Name, errors.New("it was changed meanwhile"))
		}
		if err != nil {
			return nil, err
		}
		o.SetUID(have.GetUID())
		return s.setLocked(o), nil
	case http.MethodPatch:
		o, err := patched(have, r.Header.Get("Content-Type"), body)
		if err != nil {
			return nil, err
		}
		return s.setLocked(o), nil
	case http.MethodDelete:
		s.deleteLocked(t.plural, t.name)
		return have, nil
	}
	return nil, apierrors.NewMethodNotSupported(resource, r.Method)
}

func (s *Server) decode(body []byte) (Object, error) {
	o, _, err := s.codecs.UniversalDeserializer().Decode(body, nil, nil)
	if err != nil {
		return nil, apierrors.NewBadRequest(err.Error())
	}
	return o.(Object), nil
}

func (s *Server) createLocked(resource schema.GroupResource, namespace string, body []byte) (Object, error) {
	o, err := s.decode(body)
	if err != nil {
		return nil, err
	}
	o.SetNamespace(namespace)
	if o.GetName() == "" {
		o.SetName(fmt.Sprintf("%s%d", o.GetGenerateName(), s.version))
	}
	if s.objects[resource.Resource][nameOf(o)] != nil {
		return nil, apierrors.NewAlreadyExists(resource, o.GetName())
	}
	if o.GetResourceVersion() != "" {
		return nil, apierrors.NewBadRequest("resourceVersion should not be set on objects to be created")
	}
	o.SetUID(types.UID(fmt.Sprintf("uid-%d", s.version)))
	if s.faults.OnCreate != nil {
		s.faults.OnCreate(o)
	}
	return s.setLocked(o), nil
}

func patched(have Object, kind string, patch []byte) (Object, error) {
	if !strings.HasPrefix(kind, string(types.StrategicMergePatchType)) {
		return nil, apierrors.NewBadRequest(kind + " is not supported by kubetest")
	}
	text, err := json.Marshal(have)
	if err != nil {
		return nil, err
	}
	empty := kinds[pluralOf(have)].one
	if text, err = strategicpatch.StrategicMergePatch(text, patch, empty); err != nil {
		return nil, apierrors.NewBadRequest(err.Error())
	}
	o := empty.DeepCopyObject().(Object)
	return o, json.Unmarshal(text, o)
}
