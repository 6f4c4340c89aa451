package share_test

import (
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/erofs-csi/erofs-csi/erofs/share"
)

// While an image does not answer, others supply its files; who waits for it already
// gets its bytes, and it is taken again when it answers.
func TestImageThatHangsIsPassedOver(t *testing.T) {
	text, other := strings.Repeat("z", 100_000), strings.Repeat("alone", 20_000)
	a, b := newImage(t, map[string]string{"f": text}), newImage(t, map[string]string{"g": text})
	alone := newImage(t, map[string]string{"h": other})
	synctest.Test(t, func(t *testing.T) {
		d := share.NewDomain("d")
		var told []string
		d.OnFailure(func(_ share.Inode, err error) { told = append(told, err.Error()) })
		defer a.join(d, "a").Leave()
		defer b.join(d, "b").Leave()
		defer alone.join(d, "alone").Leave()
		in := find(t, d, content(text))

		hang, before := make(chan struct{}), b.fail.count()
		a.fail.hangOn(hang)
		var wg sync.WaitGroup
		wg.Go(func() { mustRead(t, in, text) })
		wg.Go(func() { mustRead(t, in, text) })
		time.Sleep(900 * time.Millisecond)
		if n := b.fail.count(); n != before {
			t.Errorf("image b was asked %d times before image a was late", n-before)
		}
		time.Sleep(200 * time.Millisecond)
		reads := a.fail.count()
		mustRead(t, in, text) // would wait for good
		mustRead(t, in, text)
		if n := a.fail.count(); n != reads {
			t.Errorf("image a hangs and was asked %d times more", n-reads)
		}
		if len(told) != 1 || !strings.Contains(told[0], share.NewTag("a").String()) {
			t.Errorf("told %q, want image a once", told)
		}
		mustRead(t, find(t, d, content(other)), other)

		a.fail.hangOn(nil)
		close(hang)
		wg.Wait()
		reads, before = a.fail.count(), b.fail.count()
		mustRead(t, in, text)
		if a.fail.count() == reads || b.fail.count() != before {
			t.Error("image a answers again, but is not read")
		}

		// Without another image there is nothing but to wait.
		hang = make(chan struct{})
		alone.fail.hangOn(hang)
		in = find(t, d, content(other))
		done := make(chan struct{})
		for range 2 {
			wg.Go(func() { mustRead(t, in, other) })
			time.Sleep(2 * time.Second)
		}
		go func() { wg.Wait(); close(done) }()
		synctest.Wait()
		select {
		case <-done:
			t.Error("reads of an image that hangs have ended")
		default:
		}
		close(hang)
		<-done
	})
}
