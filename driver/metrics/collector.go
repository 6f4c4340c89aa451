package metrics

import (
	"fmt"
	"runtime"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/klog/v2"

	"github.com/erofs-csi/erofs-csi/driver/engine"
	"github.com/erofs-csi/erofs-csi/driver/holder"
	"github.com/erofs-csi/erofs-csi/nodecache"
)

// metric is a metric whose values are read when it is asked for.
type metric struct {
	desc *prometheus.Desc
	kind prometheus.ValueType
}

func counter(name, help string, labels ...string) metric {
	return metric{prometheus.NewDesc(prefix+name, help, labels, nil), prometheus.CounterValue}
}

func gauge(name, help string, labels ...string) metric {
	return metric{prometheus.NewDesc(prefix+name, help, labels, nil), prometheus.GaugeValue}
}

// The metrics. docs/metrics.md lists them; a test holds the two together.
var (
	buildInfo = gauge("build_info", "The release that runs; always 1.", "version", "go_version")
	ready     = gauge("ready", "Whether all volumes of before a restart are rebuilt.")
	deaths    = counter("deaths_total", "Times that the process was killed or crashed, and was started again.")

	pullsStarted        = counter("pulls_started_total", "Images that were not on the node and were asked for.")
	pullsFinished       = counter("pulls_finished_total", "Pulls that ended, by how.", "result")
	pulledBytes         = counter("pull_received_bytes_total", "Bytes of manifests and blobs that came in, by where from.", "source")
	transfers           = gauge("blob_transfers", "Blobs that are coming in.")
	conversionsStarted  = counter("conversions_started_total", "Conversions of container images.")
	conversionsFinished = counter("conversions_finished_total", "Conversions that ended, by how.", "result")
	evictions           = counter("image_store_evictions_total", "Images that were evicted or removed.")

	reads         = counter("reads_total", "Reads that missed the page cache, by what answered them.", "source")
	readBytes     = counter("read_bytes_total", "Bytes of the answers to reads.", "source")
	readErrors    = counter("read_errors_total", "Reads that were answered with an error.")
	oldestRead    = gauge("oldest_read_seconds", "Age of the oldest read under way; 0 if none is.")
	panics        = counter("request_panics_total", "Requests that ended in a panic, and were answered with an error.")
	lostMounts    = counter("lost_mounts_total", "Mounts of the process before this one that could not be taken over.")
	hashedImages  = counter("hashed_images_total", "Images whose files were hashed.")
	unsharedFiles = counter("unshared_files_total", "Files of hashed images that share with no other, by why.", "reason")

	holderConnected = gauge("holder_connected", "Whether the holder is there: mounts outlive the process.")
	holderLosses    = counter("holder_losses_total", "Times that the connection to the holder was lost.")
	holderItems     = gauge("holder_items", "Mounts and other things that the holder is to keep.")
	holderPending   = gauge("holder_pending_items", "Of these, what it does not know of or refuses.")

	volumes          = gauge("volumes", "Volumes of the node, by front.", "front")
	unhealthyVolumes = gauge("unhealthy_volumes", "Volumes with which something is wrong, by what.", "reason")

	storeBytes    = gauge("image_store_bytes", "What the image store takes on the disk.")
	storePromised = gauge("image_store_promised_bytes", "What running pulls will take beyond that.")
	storeLimit    = gauge("image_store_limit_bytes", "Limit of the image store; 0 if there is none.")
	storeBlobs    = gauge("image_store_blobs", "Images in the store.")
	diskFree      = gauge("image_store_disk_free_bytes", "What the disk of the image store has left.")
	diskReserve   = gauge("image_store_disk_reserve_bytes", "What pulls leave of that.")

	domains       = gauge("domains", "Sets of volumes that share memory, by engine.", "engine")
	mountedImages = gauge("mounted_images", "Images of the domains: shown by volumes, or idle and kept for their pages.", "state")
	sharedInodes  = gauge("shared_inodes", "Different contents of all files of the domains.")
	knownInodes   = gauge("known_inodes", "Contents that the kernel has an inode of.")
	pageCache     = gauge("page_cache_bytes", "Page cache of the files of all volumes; an estimate.")
	pageSaved     = gauge("page_cache_saved_bytes", "What the same pages would take more without sharing; an estimate.")
	plainFiles    = gauge("plain_files", "Files that are kept as plain copies on the disk.")
	plainBytes    = gauge("plain_files_bytes", "Bytes of plain copies.")

	sampleTime     = gauge("sample_timestamp_seconds", "When what is sampled was, since 1970.")
	sampleDuration = gauge("sample_duration_seconds", "How long the last sample took.")
	sampleFailures = counter("sample_failures_total", "Samples of which a part is missing.")

	unanswered = gauge("unanswered_parts", "Parts of the metrics that this answer is without, because they hang or failed.")
)

// collector is a prometheus.Collector.
type collector struct {
	src     Source
	sampler *sampler

	store   part[nodecache.Counts]
	engine  part[engine.Counts]
	holder  part[holder.Status]
	volumes part[map[string]int]
}

func newCollector(src Source, sampler *sampler) *collector {
	return &collector{
		src: src, sampler: sampler,
		store:   part[nodecache.Counts]{ask: src.Store},
		engine:  part[engine.Counts]{ask: src.Engine},
		holder:  part[holder.Status]{ask: src.Holder},
		volumes: part[map[string]int]{ask: src.Volumes},
	}
}

// Describe names nothing: before there is a sample a part of the metrics is missing.
func (c *collector) Describe(chan<- *prometheus.Desc) {}

// Collect sends all that is known. It runs in a goroutine of the library's, where a
// panic would end the process, and with it the mounts of the node.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	out := func(m metric, value float64, labels ...string) {
		got, err := prometheus.NewConstMetric(m.desc, m.kind, value, labels...)
		if err != nil {
			got = prometheus.NewInvalidMetric(m.desc, err)
		}
		ch <- got
	}
	defer func() {
		if p := recover(); p != nil {
			ch <- prometheus.NewInvalidMetric(buildInfo.desc, fmt.Errorf("panic: %v", p))
		}
	}()
	out(buildInfo, 1, c.src.Version, runtime.Version())
	out(ready, truth(c.src.Ready()))
	out(deaths, float64(c.src.Deaths))
	c.collectParts(out)
	s, failures := c.sampler.get()
	out(sampleFailures, float64(failures))
	if s != nil {
		collectSample(out, s)
	}
}

// collectParts sends what the parts answer, of those that do in time.
func (c *collector) collectParts(out emit) {
	late := make(chan struct{})
	timer := time.AfterFunc(partWait, func() { close(late) })
	defer timer.Stop()
	missing := 0
	failed := func(err error, name string) bool {
		if err != nil {
			missing++
			klog.FromContext(c.sampler.ctx).Error(err, "A part of the metrics is missing", "part", name)
		}
		return err != nil
	}
	store, node, fronts := c.store.start(), c.engine.start(), c.volumes.start()
	if c.src.Holder != nil {
		if s, err := c.holder.start().wait(late); !failed(err, "holder") {
			out(holderConnected, truth(s.Connected))
			out(holderLosses, float64(s.Losses))
			out(holderItems, float64(s.Items))
			out(holderPending, float64(s.Pending))
		}
	}
	if n, err := store.wait(late); !failed(err, "image store") {
		collectStore(out, n)
	}
	if n, err := node.wait(late); !failed(err, "engine") {
		collectEngine(out, n)
	}
	if list, err := fronts.wait(late); !failed(err, "volumes") {
		for front, n := range list {
			out(volumes, float64(n), front)
		}
	}
	out(unanswered, float64(missing))
}

// emit sends one value.
type emit func(m metric, value float64, labels ...string)

func collectStore(out emit, n nodecache.Counts) {
	for _, jobs := range []struct {
		started, finished metric
		nodecache.Jobs
	}{
		{pullsStarted, pullsFinished, n.Pulls},
		{conversionsStarted, conversionsFinished, n.Conversions},
	} {
		out(jobs.started, float64(jobs.Started))
		for result, n := range jobs.Finished {
			out(jobs.finished, float64(n), result)
		}
	}
	out(transfers, float64(n.Transfers))
	for source, n := range n.Received {
		out(pulledBytes, float64(n), source)
	}
	out(evictions, float64(n.Evictions))
}

func collectEngine(out emit, n engine.Counts) {
	out(reads, float64(n.Reads.Image.Requests), "image")
	out(reads, float64(n.Reads.Readahead.Requests), "readahead")
	out(readBytes, float64(n.Reads.Image.Bytes), "image")
	out(readBytes, float64(n.Reads.Readahead.Bytes), "readahead")
	out(readErrors, float64(n.Reads.Failed))
	out(oldestRead, n.Reads.Oldest.Seconds())
	out(panics, float64(n.Panics))
	out(lostMounts, float64(n.Lost))
	out(hashedImages, float64(n.Hashed))
	out(unsharedFiles, float64(n.Unreadable), "unreadable")
	out(unsharedFiles, float64(n.Forged), "forged")
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

func collectSample(out emit, s *Sample) {
	out(sampleTime, float64(s.taken.UnixMilli())/1000)
	out(sampleDuration, s.took.Seconds())
	for reason, n := range s.Unhealthy {
		out(unhealthyVolumes, float64(n), reason)
	}
	if u := s.Usage; u != nil {
		out(storeBytes, float64(u.Bytes))
		out(storePromised, float64(u.Promised))
		out(storeLimit, float64(u.Limit))
		out(storeBlobs, float64(u.Blobs))
		out(diskFree, float64(u.Free))
		out(diskReserve, float64(u.Reserve))
	}
	if s.Domains != nil {
		collectDomains(out, s.Domains)
	}
}

func collectDomains(out emit, list []engine.DomainStatus) {
	byEngine := map[string]int{engine.EngineFUSE: 0, engine.EngineKernel: 0}
	var sum engine.DomainStatus
	shown, idle := 0, 0
	for _, d := range list {
		byEngine[d.Engine]++
		idle += len(d.Idle)
		shown += len(d.Images) - len(d.Idle)
		sum.SharedInodes += d.SharedInodes
		sum.KnownInodes += d.KnownInodes
		sum.StoredFiles += d.StoredFiles
		sum.StoredBytes += d.StoredBytes
		sum.BytesResident += d.BytesResident
		sum.BytesSaved += d.BytesSaved
	}
	for name, n := range byEngine {
		out(domains, float64(n), name)
	}
	out(mountedImages, float64(shown), "shown")
	out(mountedImages, float64(idle), "idle")
	out(sharedInodes, float64(sum.SharedInodes))
	out(knownInodes, float64(sum.KnownInodes))
	out(pageCache, float64(sum.BytesResident))
	out(pageSaved, float64(sum.BytesSaved))
	out(plainFiles, float64(sum.StoredFiles))
	out(plainBytes, float64(sum.StoredBytes))
}
