// object: what `prctl` and others set: parent death signal, subreaper, dumpable, timer slack, securebits, personality
// status: captured
// note: `PR_SET_SPECULATION_CTRL` is hidden (EINVAL)
#include "object.h"
#include <linux/securebits.h>
#include <sys/personality.h>
#include <sys/prctl.h>

int main(void) {
    CHECK(!prctl(PR_SET_PDEATHSIG, SIGUSR2));
    CHECK(!prctl(PR_SET_CHILD_SUBREAPER, 1));
    CHECK(!prctl(PR_SET_DUMPABLE, 0));
    CHECK(!prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0));
    CHECK(!prctl(PR_SET_SECUREBITS, SECBIT_KEEP_CAPS | SECBIT_NO_SETUID_FIXUP));
    CHECK(personality(ADDR_NO_RANDOMIZE) != -1);
    signal(SIGUSR2, SIG_IGN);
    ready();
    for (int round = 1; go_on(); round++) {
        int word = 0;
        CHECK(!prctl(PR_SET_TIMERSLACK, 50000 + round));
        usleep(1000);
        CHECK_EQUAL(prctl(PR_GET_TIMERSLACK), 50000 + round);
        CHECK(!prctl(PR_GET_PDEATHSIG, &word) && word == SIGUSR2);
        CHECK(!prctl(PR_GET_CHILD_SUBREAPER, &word) && word == 1);
        CHECK_EQUAL(prctl(PR_GET_DUMPABLE), 0);
        CHECK_EQUAL(prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0), 1);
        CHECK_EQUAL(prctl(PR_GET_SECUREBITS), SECBIT_KEEP_CAPS | SECBIT_NO_SETUID_FIXUP);
        CHECK_EQUAL(personality(0xffffffff), ADDR_NO_RANDOMIZE);
    }
    PASS();
}
