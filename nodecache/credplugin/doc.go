// Package credplugin asks kubelet's image credential provider plugins for the
// credentials of an image: it reads kubelet's configuration file of them, runs
// them as kubelet does, and keeps what they answer for as long as they allow.
//
// Limits. Service account tokens are not to be had here: a provider that
// requires one is never run, and named instead. A run takes at most a minute
// and answers with at most 1 MiB. A configuration is at most 1 MiB and names at
// most 64 providers. What a plugin writes to its standard error is dropped, and
// no error quotes what it answered: both may be secrets.
//
// Source: kubelet.config.k8s.io/v1 and credentialprovider.kubelet.k8s.io/v1 of
// Kubernetes 1.37, and its pkg/credentialprovider/plugin. v1beta1 and v1alpha1
// of both have the same fields.
package credplugin
