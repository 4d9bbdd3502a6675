package kernel

import (
	"os"
	"strconv"
	"time"
)

// slower is ORLOP_TEST_SLOW, how many times slower than usual this machine is: an emulated one.
var slower = func() time.Duration {
	n, err := strconv.Atoi(os.Getenv("ORLOP_TEST_SLOW"))
	if err != nil || n < 1 {
		return 1
	}
	return time.Duration(n)
}()

// Patient is the time limit that d is on a machine of usual speed.
func Patient(d time.Duration) time.Duration { return d * slower }
