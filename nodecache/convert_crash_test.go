package nodecache

import (
	"os"
	"testing"
)

// pushContainer pushes a container image and says what its conversion must be.
func pushContainer(t *testing.T) pushed {
	t.Helper()
	p := anonymous(t).container("v1", threeLayers(t)...)
	s := openStore(t, Config{})
	img := acquire(t, s, p.ref, AcquireOptions{})
	content, err := os.ReadFile(img.Blob().Path())
	if err != nil {
		t.Fatal(err)
	}
	rec, err := readRecord(s.dir.conversion(p.manifest))
	if err != nil {
		t.Fatal(err)
	}
	p.blob, p.content, p.converted = rec.Blob, content, true
	return p
}

// convertCrash is the scenario for the three tests below: that of a pull, with a
// container image.
func convertCrash(t *testing.T) crashTest {
	p := pushContainer(t)
	return crashTest{
		name: "pull", arg: p.ref, steps: 30,
		check: func(t *testing.T, dir string, done bool) { t.Helper(); wantWhole(t, dir, p, done) },
	}
}

func TestConvertKilled(t *testing.T)   { convertCrash(t).killed(t) }
func TestConvertPowerCut(t *testing.T) { convertCrash(t).powerCut(t) }

// TestConvertStepFails has each step of a conversion fail once.
func TestConvertStepFails(t *testing.T) {
	convertCrash(t).stepFails(t, func(step string) bool { return step == "syncdir .." })
}
