# A single static binary. The nodes provide the kernel's fuse, overlay and erofs.
FROM --platform=$BUILDPLATFORM golang:1.26-bookworm AS build
ARG TARGETOS
ARG TARGETARCH
ARG VERSION=devel
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
RUN make build GOOS=$TARGETOS GOARCH=$TARGETARCH VERSION=$VERSION BIN=/erofs-csi

FROM scratch
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /erofs-csi /erofs-csi
ENTRYPOINT ["/erofs-csi"]
