// Package metrics tells Prometheus of a node.
//
// What is counted is counted by those who do it, in atomics, and read at a scrape.
// What costs more to learn, such as what is in the page cache, is sampled: when a
// scrape finds the last sample older than SamplePeriod, another is taken. So nobody
// pays for metrics that nobody asks for, and a scrape waits for nothing that may
// hang.
//
// # Limits
//
// No label has a value that users choose: no image, registry, domain or volume is
// named. The server has neither TLS nor authentication.
package metrics
