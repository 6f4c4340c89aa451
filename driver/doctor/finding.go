package doctor

import "fmt"

// Result is how a check ended.
type Result string

// The results.
const (
	OK   Result = "ok"
	Warn Result = "warn" // something can't be had, or is at risk
	Fail Result = "fail" // a node plugin would not work, or soon not
)

// Finding is what a check found.
type Finding struct {
	Check  string `json:"check"`
	Result Result `json:"result"`
	Found  string `json:"found"`
	Fix    string `json:"fix,omitempty"` // what to do; empty with OK
}

func ok(format string, args ...any) Finding {
	return Finding{Result: OK, Found: fmt.Sprintf(format, args...)}
}

// warn and fail take the fix before what was found.
func warn(fix, format string, args ...any) Finding {
	return Finding{Result: Warn, Found: fmt.Sprintf(format, args...), Fix: fix}
}

func fail(fix, format string, args ...any) Finding {
	return Finding{Result: Fail, Found: fmt.Sprintf(format, args...), Fix: fix}
}
