package nodecache

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"strings"
	"sync/atomic"

	"github.com/opencontainers/go-digest"

	"github.com/erofs-csi/erofs-csi/erofs/build"
)

// converterVersion is what a conversion's result depends on besides the manifest.
// Change it whenever the bytes change: images are then converted anew.
const converterVersion = "1"

// convertedType is the media type of what a conversion makes.
const convertedType = erofsType + ".layer.v1"

// conversion is one image on its way from its layers into a blob.
type conversion struct {
	store *Store
	reg   *registryClient
	plan  plan
	out   *growing
	read  *atomic.Int64 // bytes of layers
	// current is the layer in hand.
	current digest.Digest
}

// convertLayers makes the image of p and brings it into the store. After an error
// nothing of it is left. The result is held until release.
func (s *Store) convertLayers(ctx context.Context, reg *registryClient, p plan, read *atomic.Int64) (rec record, release func(), err error) {
	c := &conversion{store: s, reg: reg, plan: p, read: read}
	if c.out, err = s.newGrowing("conversion of " + reg.ref.String()); err != nil {
		return record{}, nil, err
	}
	defer func() {
		if err != nil {
			c.out.discard()
		}
	}()
	for {
		err := c.write(ctx)
		if errors.Is(err, ErrDigestMismatch) && reg.distrust(c.current.String()) {
			if err := c.out.Truncate(0); err != nil {
				return record{}, nil, err
			}
			read.Store(0)
			continue // without the mirror that sent a part of the layer
		}
		if err != nil {
			return record{}, nil, c.failed(ctx, err)
		}
		break
	}
	d, err := c.digest(ctx)
	if err != nil {
		return record{}, nil, c.failed(ctx, err)
	}
	unhold, err := s.hold(ctx, imageID(d)) // after an eviction of it that is under way
	if err != nil {
		return record{}, nil, err
	}
	defer func() {
		if err != nil {
			unhold()
		}
	}()
	rec = p.rec
	rec.Blob, rec.Size, rec.MediaType, rec.Converter = d, c.out.size, convertedType, converterVersion
	if s.blobPresent(d, c.out.size) {
		c.out.discard()
	} else {
		if err := s.removeBlob(d); err != nil {
			return record{}, nil, s.diskError("replace damaged blob "+d.String(), err)
		}
		c.out.forget()
		if err := s.publish(c.out.file, s.dir.blob(d)); err != nil {
			return record{}, nil, s.diskError("store the "+c.out.what, err)
		}
	}
	if err := s.writeRecord(s.dir.conversion(p.rec.Manifest), rec.conversion()); err != nil {
		return record{}, nil, s.diskError("remember the "+c.out.what, err)
	}
	return rec, unhold, nil
}

// failed makes a layer's fault an error of this package.
func (c *conversion) failed(ctx context.Context, err error) error {
	switch cause := ended(ctx); {
	case cause != nil:
		return fmt.Errorf("convert %s: %w", c.reg.ref, cause)
	case errors.Is(err, build.ErrLayer), errors.Is(err, build.ErrLimit):
		return fmt.Errorf("%w: %s: %w", ErrUnsupportedImage, c.reg.ref, err)
	}
	return err
}

func (c *conversion) limits() build.Limits { return build.Limits{Bytes: c.store.convertBytes} }

// write writes the image.
func (c *conversion) write(ctx context.Context) error {
	scratch, err := c.store.newScratch(c.out.what)
	if err != nil {
		return err
	}
	defer scratch.discard()
	b := build.New(ctx, c.out, scratch, build.Options{Limits: c.limits()})
	for _, l := range c.plan.layers {
		c.current = l.desc.Digest
		b.Layer(c.current.String())
		copied, err := c.layer(ctx, b, l)
		if copied || err != nil {
			return err
		}
	}
	_, err = b.Finish()
	return err
}

// layer lays one layer over those before. copied says that the only layer was an
// EROFS image, which is the result as it is.
func (c *conversion) layer(ctx context.Context, b *build.Builder, l layer) (copied bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	blob := c.reg.openLayer(ctx, l.desc)
	defer blob.close()
	plain, err := build.Decompress(countedReader{blob, c.read})
	if err != nil {
		cancel()
		return false, c.blame(blob, l, err)
	}
	defer func() { _ = plain.Close() }()
	sum := &hashed{r: plain, hash: sha256.New(), left: c.limits().Archive()}
	ahead := build.Ahead(sum)
	defer func() {
		cancel()
		_ = ahead.Close() // before what it reads is closed
	}()
	copied, err = c.content(ctx, b, ahead)
	if err == nil {
		_, err = io.Copy(io.Discard, ahead) // what is behind an archive's end counts as well
	}
	if err == nil {
		_, err = io.Copy(io.Discard, blob)
	}
	if err != nil {
		_ = ahead.Close()
		return false, c.blame(blob, l, err)
	}
	if err := blob.verify(); err != nil {
		return false, err
	}
	if got := digest.NewDigest(digest.SHA256, sum.hash); l.diffID != "" && got != l.diffID {
		return false, fmt.Errorf("%w: layer %s of %s is %s uncompressed, the image says %s", ErrDigestMismatch, l.desc.Digest, c.reg.ref, got, l.diffID)
	}
	return copied, nil
}

// countedReader counts what is read.
type countedReader struct {
	r io.Reader
	n *atomic.Int64
}

func (c countedReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n.Add(int64(n))
	return n, err
}

// blame reads the rest of a layer that makes no sense: if the bytes are not those
// of its digest, that is what is wrong.
func (c *conversion) blame(blob *layerReader, l layer, err error) error {
	malformed := errors.Is(err, build.ErrLayer)
	if !malformed && !errors.Is(err, build.ErrLimit) {
		return err
	}
	if malformed {
		if _, rest := io.Copy(io.Discard, blob); rest == nil && blob.verify() != nil {
			return blob.verify()
		}
	}
	if name := l.desc.Digest.String(); !strings.Contains(err.Error(), name) {
		return fmt.Errorf("layer %s: %w", name, err)
	}
	return err
}

// content adds a layer's uncompressed bytes, by what they are.
func (c *conversion) content(ctx context.Context, b *build.Builder, r io.Reader) (copied bool, err error) {
	head := make([]byte, build.HeadSize)
	n, err := io.ReadFull(r, head)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return false, err
	}
	whole := &joined{head: head[:n], rest: r}
	switch {
	case !build.IsImage(head[:n]):
		return false, b.AddTar(whole, build.TarOptions{Whiteouts: true})
	case len(c.plan.layers) == 1:
		return true, copyInto(ctx, c.out, whole)
	}
	image, err := c.store.newScratch(c.out.what)
	if err != nil {
		return false, err
	}
	defer image.discard()
	if err := copyInto(ctx, image, whole); err != nil {
		return false, err
	}
	return false, b.AddImage(image, image.size)
}

// copyInto appends all of r to an empty file.
func copyInto(ctx context.Context, g *growing, r io.Reader) error {
	buf := make([]byte, chunkSize)
	for off := int64(0); ; {
		if err := ended(ctx); err != nil {
			return err
		}
		n, err := io.ReadFull(r, buf)
		if _, werr := g.WriteAt(buf[:n], off); werr != nil {
			return werr
		}
		off += int64(n)
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			return nil
		case err != nil:
			return err
		}
	}
}

// digest reads the image once more, from memory if it is still there.
func (c *conversion) digest(ctx context.Context) (digest.Digest, error) {
	h := sha256.New()
	buf := make([]byte, chunkSize)
	for off := int64(0); off < c.out.size; {
		if err := ended(ctx); err != nil {
			return "", err
		}
		n, err := c.out.ReadAt(buf[:min(int64(len(buf)), c.out.size-off)], off)
		if err != nil && !errors.Is(err, io.EOF) || n == 0 {
			return "", fmt.Errorf("read the %s: %w", c.out.what, errors.Join(err, io.ErrUnexpectedEOF))
		}
		h.Write(buf[:n])
		off += int64(n)
	}
	return digest.NewDigest(digest.SHA256, h), nil
}

// hashed hashes what is read, and ends it at a limit.
type hashed struct {
	r    io.Reader
	hash hash.Hash
	left int64
}

func (h *hashed) Read(p []byte) (int, error) {
	n, err := h.r.Read(p)
	h.hash.Write(p[:n])
	if h.left -= int64(n); h.left < 0 {
		return 0, fmt.Errorf("%w: too many bytes uncompressed", build.ErrLimit)
	}
	return n, err
}

// joined reads head, then rest.
type joined struct {
	head []byte
	rest io.Reader
}

func (j *joined) Read(p []byte) (int, error) {
	if len(j.head) > 0 {
		n := copy(p, j.head)
		j.head = j.head[n:]
		return n, nil
	}
	return j.rest.Read(p)
}
