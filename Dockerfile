# The container image: the static binary and the small ones of the holder and the
# supervisor beside it, the certificates of registries' authorities and the licence, no
# shell. What is in it is made by `make image-rootfs`, which makes the same without a
# container engine. The nodes bring the kernel's fuse, overlay and erofs.
#
#   make image IMAGE=registry.example/erofs-csi:1 PLATFORM=linux/amd64,linux/arm64
FROM --platform=$BUILDPLATFORM golang:1.26-trixie AS build
ARG TARGETOS
ARG TARGETARCH
ARG VERSION=devel
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
RUN make image-rootfs ROOTFS=/rootfs GOOS=$TARGETOS GOARCH=$TARGETARCH VERSION=$VERSION

FROM scratch
ARG VERSION=devel
ARG REVISION=
LABEL org.opencontainers.image.title="erofs-csi" \
      org.opencontainers.image.description="Kubernetes CSI driver that mounts EROFS images read-only with one page cache for files of equal content" \
      org.opencontainers.image.source="https://github.com/erofs-csi/erofs-csi" \
      org.opencontainers.image.documentation="https://github.com/erofs-csi/erofs-csi/tree/main/docs" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION"
COPY --from=build /rootfs/ /
# Nobody, for the controller and the command line tools. The node plugin has to be root
# and privileged, which its DaemonSet asks for: it mounts file systems, opens /dev/fuse
# and loop devices, and its mounts are to appear on the node.
USER 65532:65532
ENTRYPOINT ["/erofs-csi"]
