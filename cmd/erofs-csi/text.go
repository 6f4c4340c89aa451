package main

import (
	"fmt"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// bytesText writes a number of bytes in powers of 1024 with one decimal.
func bytesText(n uint64) string {
	const units = "KMGTPE"
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	f, unit := float64(n), 0
	for f /= 1024; f >= 1023.95 && unit < len(units)-1; f /= 1024 {
		unit++
	}
	return fmt.Sprintf("%.1f %ciB", f, units[unit])
}

// printable quotes a name that a terminal could not show as it is; images and
// registries can put any bytes into one.
func printable(s string) string {
	if utf8.ValidString(s) && strings.IndexFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) < 0 {
		return s
	}
	return strconv.Quote(s)
}

func notNegative(n int64) uint64 { return uint64(max(n, 0)) }
