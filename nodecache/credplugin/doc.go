// Package credplugin asks kubelet's image credential provider plugins for the
// credentials of an image: it reads kubelet's configuration file of them, runs
// them as kubelet does, and keeps what they answer for as long as they allow.
//
// Limits. Nothing is known of service accounts but the tokens that a caller has:
// without one a provider that requires it is not run, and one that requires
// annotations never is. A run takes at most a minute
// and answers with at most 1 MiB. A configuration is at most 1 MiB and names at
// most 64 providers. What a plugin writes to its standard error is dropped, and
// no error quotes what it answered: both may be secrets.
//
// Source: kubelet.config.k8s.io/v1 and credentialprovider.kubelet.k8s.io/v1 of
// Kubernetes 1.37, and its pkg/credentialprovider/plugin. v1beta1 and v1alpha1
// of both have the same fields.
package credplugin
