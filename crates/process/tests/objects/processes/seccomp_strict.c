// object: the strict mode of seccomp
// status: hidden
// note: EINVAL, as on a kernel without it: there is a filter already
#include "object.h"
#include "seccomp.h"

int main(void) {
    ready();
    do {
        CHECK(prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT) < 0 && errno == EINVAL);
        CHECK(syscall(SYS_seccomp, SECCOMP_SET_MODE_STRICT, 0, 0) < 0 && errno == EINVAL);
    } while (go_on());
    PASS();
}
