# erofs-csi: build, test, lint, demo. `make` alone prints the list of targets.

SHELL       := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:

# A fresh machine often has Go unpacked without being in PATH.
export PATH := $(PATH):/usr/local/go/bin

GO       ?= go
VERSION  ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
GOOS     ?= $(shell $(GO) env GOOS)
GOARCH   ?= $(shell $(GO) env GOARCH)
LDFLAGS  := -s -w -X main.version=$(VERSION)
BIN      := bin/erofs-csi

# The tests of the whole tree measure page cache and mount file systems: one
# package at a time, so that none changes what another measures.
PACKAGES  = ./...
TESTFLAGS ?=
TIMEOUT   ?= 20m
# As root everything the tests need is there or gets installed, so a test that
# would skip fails instead.
ROOT_CI   := $(if $(filter 0,$(shell id -u)),true)

# Tools are built from source at these versions into .cache/bin.
GOLANGCI_VERSION := v2.15.0
GOLANGCI         := .cache/bin/golangci-lint-$(GOLANGCI_VERSION)/golangci-lint

KIND_VERSION     := v0.33.0
KIND             := .cache/bin/kind-$(KIND_VERSION)/kind

FUZZTIME ?= 30s
CHAOSFLAGS ?=
E2E_TIMEOUT ?= 40m
E2EFLAGS ?=
IMAGE    ?= erofs-csi:$(VERSION)
# Empty: this machine's. Several are separated by commas.
PLATFORM ?=
ROOTFS   ?= bin/image-rootfs
CA_CERTS ?= /etc/ssl/certs/ca-certificates.crt

IMAGEARGS = --build-arg VERSION=$(VERSION) --build-arg REVISION=$$(git rev-parse HEAD 2>/dev/null) \
	$(if $(PLATFORM),--platform $(PLATFORM))

.PHONY: help
help: ## Print this list
	@awk 'BEGIN {FS = ":.*## "} /^[a-z0-9-]+:.*## / {printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: build
build: ## Build bin/erofs-csi and the small programs beside it, static
	@CGO_ENABLED=0 GOOS=$(GOOS) GOARCH=$(GOARCH) $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o $(BIN) ./cmd/erofs-csi
	@for name in holder supervisor; do \
		CGO_ENABLED=0 GOOS=$(GOOS) GOARCH=$(GOARCH) $(GO) build -trimpath -ldflags '-s -w' -o $(BIN)-$$name ./cmd/erofs-csi-$$name || exit; \
	done

.PHONY: kubectl-erofs
kubectl-erofs: build ## Build bin/kubectl-erofs; in PATH, it is "kubectl erofs"
	@ln -sf $(notdir $(BIN)) $(dir $(BIN))kubectl-erofs

.PHONY: run
run: build ## Run the demo: two images, one page cache (root; no Kubernetes needed)
	@test/prepare demo
	@$(GO) run ./test/demo -binary $(BIN)

.PHONY: test
test: ## Run all tests but the end-to-end ones (as root: none is skipped)
	@test/prepare test
	@CI=$${CI:-$(ROOT_CI)} $(GO) test -p 1 -timeout $(TIMEOUT) $(TESTFLAGS) $(PACKAGES)
	@cd test/chart && $(GO) test $(TESTFLAGS) ./...

.PHONY: generate
generate: ## Write the files that are made from the chart and the commands; commit them
	@cd test/chart && $(GO) test -count=1 -run 'TestRenders|TestPlainManifest|TestReadme' . -update
	@$(GO) test -count=1 -run '^TestReference$$' ./cmd/erofs-csi -update

.PHONY: test-race
test-race: ## The same under the race detector (needs a C compiler)
	@test/prepare race
	@CI=$${CI:-$(ROOT_CI)} CGO_ENABLED=1 $(GO) test -race -p 1 -timeout $(TIMEOUT) $(TESTFLAGS) $(PACKAGES)

.PHONY: matrix
matrix: ## Compare images of all of mkfs.erofs' options with the kernel: all trees, each with each row
	@test/prepare test
	@CI=$${CI:-$(ROOT_CI)} $(GO) test -count=1 -timeout $(TIMEOUT) -run '^TestMatrix$$' ./erofs -args -matrix

.PHONY: bench
bench: build ## Compare with the kernel's EROFS: speed and page cache (root; BENCHFLAGS=-h)
	@test/prepare demo
	@$(GO) run ./test/bench -binary $(BIN) $(BENCHFLAGS)

.PHONY: chaos
chaos: build ## Kill the plugin under readers, and worse, and count what they notice (root; CHAOSFLAGS=-h)
	@test/prepare test
	@$(MAKE) --no-print-directory build VERSION=$(VERSION)-other BIN=bin/other/erofs-csi
	@$(GO) run ./test/chaos -binary $(BIN) -other bin/other/erofs-csi $(CHAOSFLAGS)

.PHONY: fuzz
fuzz: ## Run each fuzz target for FUZZTIME (30s)
	@GO='$(GO)' test/fuzz $(FUZZTIME)

.PHONY: lint
lint: $(GOLANGCI) ## Lint, with the dependency arrows, and prove that the arrows hold
	@$(GOLANGCI) run ./...
	@cd test/chart && $(abspath $(GOLANGCI)) run -c ../../.golangci.yml ./...
	@cd test/e2e && $(abspath $(GOLANGCI)) run -c ../../.golangci.yml ./...
	@# Without what needs types: for 30 lines that would compile all of Kubernetes.
	@cd test/e2e/external && $(abspath $(GOLANGCI)) run --fast-only -c ../../../.golangci.yml ./...
	@GOLANGCI_LINT=$(abspath $(GOLANGCI)) $(GO) test -count=1 -tags arrows ./test/arrows

.PHONY: fmt
fmt: $(GOLANGCI) ## Format the Go files
	@$(GOLANGCI) fmt ./...
	@cd test/chart && $(abspath $(GOLANGCI)) fmt -c ../../.golangci.yml ./...
	@cd test/e2e && $(abspath $(GOLANGCI)) fmt -c ../../.golangci.yml ./...
	@cd test/e2e/external && $(abspath $(GOLANGCI)) fmt -c ../../../.golangci.yml ./...

.PHONY: vet
vet: ## go vet
	@$(GO) vet ./...
	@cd test/chart && $(GO) vet ./...
	@cd test/e2e && $(GO) vet ./...

.PHONY: e2e
e2e: kubectl-erofs ## End-to-end tests against the cluster of KUBECONFIG (test/e2e/README.md)
	@cd test/e2e && $(GO) test -count=1 -v -timeout $(E2E_TIMEOUT) $(E2EFLAGS) .

.PHONY: e2e-kind
e2e-kind: $(KIND) ## The same against a kind cluster that is made for it (docker)
	@KIND=$(abspath $(KIND)) test/e2e/on-kind $(E2EFLAGS)

.PHONY: e2e-external
e2e-external: ## Kubernetes' external storage suite against the cluster of KUBECONFIG
	@test/e2e/external/run

.PHONY: image
image: ## Build the container image IMAGE with docker or buildah, for PLATFORM
	@if docker info >/dev/null 2>&1; then \
		docker build $(IMAGEARGS) -t $(IMAGE) .; \
	elif command -v buildah >/dev/null; then \
		buildah build $(IMAGEARGS) $(if $(PLATFORM),--manifest,-t) $(IMAGE) .; \
	else \
		echo "make $@: neither a docker that answers nor buildah is here; make image-rootfs needs none" >&2; exit 1; \
	fi

# All that is in the container image; the Dockerfile copies what this makes.
.PHONY: image-rootfs
image-rootfs: ## Make the container image's files in the directory ROOTFS
	@test -s $(CA_CERTS) || { echo "make $@: $(CA_CERTS) is missing: install ca-certificates, or name another bundle by CA_CERTS=" >&2; exit 1; }
	@rm -rf $(ROOTFS)
	@$(MAKE) --no-print-directory build BIN=$(ROOTFS)/erofs-csi
	@install -D -m 644 $(CA_CERTS) $(ROOTFS)/etc/ssl/certs/ca-certificates.crt
	@install -m 644 LICENSE $(ROOTFS)/LICENSE

.PHONY: clean
clean: ## Remove bin and .cache
	@rm -rf bin .cache

$(KIND):
	@echo "building kind $(KIND_VERSION) (once)" >&2
	@GOBIN=$(abspath $(@D)) GOFLAGS= $(GO) install sigs.k8s.io/kind@$(KIND_VERSION)

$(GOLANGCI):
	@echo "building golangci-lint $(GOLANGCI_VERSION) (once)" >&2
	@GOBIN=$(abspath $(@D)) GOFLAGS= $(GO) install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_VERSION)
