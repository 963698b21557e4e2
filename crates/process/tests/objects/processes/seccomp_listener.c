// object: a process that answers system calls of others (SECCOMP_FILTER_FLAG_NEW_LISTENER)
// status: refused: listener
// note: run the program without it
#include "object.h"
#include "seccomp.h"

int main(void) {
    CHECK(!prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
    CHECK(FILTER(SECCOMP_FILTER_FLAG_NEW_LISTENER, IF_CALL(SYS_getppid, SECCOMP_RET_USER_NOTIF), OTHERWISE(SECCOMP_RET_ALLOW)) >= 0);
    ready();
    while (go_on()) {}
    PASS();
}
