// object: a filter that asks a tracer (SECCOMP_RET_TRACE)
// status: refused: tracer
// note: the tracer is the supervisor
#include "object.h"
#include "seccomp.h"

int main(void) {
    CHECK(!prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
    CHECK(!FILTER(0, IF_CALL(SYS_getppid, SECCOMP_RET_TRACE), OTHERWISE(SECCOMP_RET_ALLOW)));
    ready();
    while (go_on()) {}
    PASS();
}
