// SPDX-License-Identifier: Apache-2.0

// Judges manifests as KubeVirt's API server does: schema with unknown fields forbidden, defaults, admission.
//
//	kubevirt FILE...     ends with 1 where a document is refused, and says a line of causes for each such file
//	kubevirt crd         prints the CustomResourceDefinition of VirtualMachine as JSON
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	k8sfield "k8s.io/apimachinery/pkg/util/validation/field"
	documents "k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/tools/cache"
	v1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/yaml"

	extv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"

	"kubevirt.io/kubevirt/pkg/defaults"
	netadmitter "kubevirt.io/kubevirt/pkg/network/admitter"
	webhookutils "kubevirt.io/kubevirt/pkg/util/webhooks"
	"kubevirt.io/kubevirt/pkg/virt-api/webhooks/validating-webhook/admitters"
	virtconfig "kubevirt.io/kubevirt/pkg/virt-config"
	"kubevirt.io/kubevirt/pkg/virt-operator/resource/generate/components"
)

func main() {
	if len(os.Args) == 2 && os.Args[1] == "crd" {
		crd, err := components.NewVirtualMachineCrd()
		if err != nil {
			fail(err)
		}
		text, err := json.Marshal(crd)
		if err != nil {
			fail(err)
		}
		os.Stdout.Write(text)
		return
	}
	config, err := cluster()
	if err != nil {
		fail(err)
	}
	code := 0
	for _, path := range os.Args[1:] {
		if err := judge(path, config); err != nil {
			fmt.Fprintf(os.Stderr, "%s: %s\n", path, strings.ReplaceAll(err.Error(), "\n", "; "))
			code = 1
		}
	}
	os.Exit(code)
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

// cluster is KubeVirt's configuration as it is installed, without feature gates.
func cluster() (*virtconfig.ClusterConfig, error) {
	kubevirt := &v1.KubeVirt{
		ObjectMeta: metav1.ObjectMeta{Name: "kubevirt", Namespace: "kubevirt", ResourceVersion: "1"},
		Status:     v1.KubeVirtStatus{Phase: v1.KubeVirtPhaseDeployed, DefaultArchitecture: "amd64"},
	}
	crds := cache.NewSharedIndexInformer(&cache.ListWatch{}, &extv1.CustomResourceDefinition{}, 0, cache.Indexers{})
	kubevirts := cache.NewSharedIndexInformer(&cache.ListWatch{}, &v1.KubeVirt{}, 0, cache.Indexers{})
	if err := kubevirts.GetStore().Add(kubevirt); err != nil {
		return nil, err
	}
	return virtconfig.NewClusterConfigWithCPUArch(crds, kubevirts, "kubevirt", "amd64")
}

func judge(path string, config *virtconfig.ClusterConfig) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	reader := documents.NewYAMLReader(bufio.NewReader(file))
	machines := 0
	for {
		document, err := reader.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		var kind metav1.TypeMeta
		if err := yaml.Unmarshal(document, &kind); err != nil {
			return err
		}
		switch kind.Kind {
		case "":
			// Comments alone.
		case "PersistentVolumeClaim":
			if err := yaml.UnmarshalStrict(document, &corev1.PersistentVolumeClaim{}); err != nil {
				return err
			}
		case "VirtualMachine":
			machines++
			if err := admit(document, config); err != nil {
				return err
			}
		default:
			return fmt.Errorf("a document of kind %q", kind.Kind)
		}
	}
	if machines != 1 {
		return fmt.Errorf("%d machines", machines)
	}
	return nil
}

// admit does what VMsAdmitter.Admit of KubeVirt does for a new machine, without the steps that ask other objects.
func admit(document []byte, config *virtconfig.ClusterConfig) error {
	machine := v1.VirtualMachine{}
	if err := yaml.UnmarshalStrict(document, &machine); err != nil {
		return err
	}
	raw, err := yaml.YAMLToJSON(document)
	if err != nil {
		return err
	}
	if refused := webhookutils.ValidateSchema(v1.VirtualMachineGroupVersionKind, raw); refused != nil {
		return fmt.Errorf("schema: %s", refused.Result.Message)
	}
	if machine.Spec.Template == nil {
		return errors.New("no template")
	}
	spec := &machine.Spec.Template.Spec
	if err := defaults.SetDefaultVirtualMachineInstanceSpec(config, spec); err != nil {
		return err
	}
	field := k8sfield.NewPath("spec")
	causes := netadmitter.NewValidator(field, spec, config).ValidateCreation()
	causes = append(causes, admitters.ValidateVirtualMachineSpec(field, &machine.Spec, config, false)...)
	for _, cause := range causes {
		err = errors.Join(err, fmt.Errorf("%s: %s", cause.Field, cause.Message))
	}
	return err
}
