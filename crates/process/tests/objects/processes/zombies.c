// object: processes that have ended by themselves or by signals of several kinds and were not waited for
// status: captured
#include "object.h"
#include <sys/prctl.h>
#include <sys/wait.h>

// The last is a real-time signal.
static const int ends[] = {0, SIGTERM, SIGHUP, SIGPIPE, SIGUSR2, SIGTRAP, SIGKILL, SIGALRM, 40};
enum { ENDS = sizeof ends / sizeof *ends };

static void begin(pid_t *children) {
    for (int at = 0; at < ENDS; at++) {
        if ((children[at] = fork())) continue;
        prctl(PR_SET_DUMPABLE, 0);
        if (ends[at]) kill(getpid(), ends[at]);
        _exit(7);
    }
}

static void check(const pid_t *children) {
    for (int at = 0; at < ENDS; at++) {
        int status = -1;
        CHECK_EQUAL(waitpid(children[at], &status, 0), children[at]);
        if (ends[at] ? status != ends[at] : status != 7 << 8) FAIL("the status is %#x, of %d", status, ends[at]);
    }
}

int main(void) {
    pid_t first[ENDS], next[ENDS];
    begin(first);
    usleep(50000);
    ready();
    while (go_on()) {
        begin(next);
        for (int turn = 0; turn < 10; turn++) go_on();
        check(next);
    }
    check(first);
    PASS();
}
