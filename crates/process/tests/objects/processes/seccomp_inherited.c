// object: filters that are kept over `exec` and inherited by `fork`, put on by root without no_new_privs before it became another user
// status: captured
#include "object.h"
#include "seccomp.h"
#include <sys/wait.h>

static int denied(void) {
    errno = 0;
    return syscall(SYS_getppid) == -1 && errno == 70;
}

int main(int count, char **arguments) {
    if (count < 2) {
        CHECK(!FILTER(0, IF_CALL(SYS_getppid, WITH_ERROR(70)), OTHERWISE(SECCOMP_RET_ALLOW)));
        CHECK(!setgid(65534) && !setuid(65534));
        execl(arguments[0], arguments[0], "again", (char *)0);
        FAIL("exec");
    }
    if (!strcmp(arguments[1], "short")) return denied() ? 7 : 8;
    CHECK(denied());
    ready();
    do {
        pid_t child = fork();
        if (!child) {
            if (!denied()) _exit(1);
            execl(arguments[0], arguments[0], "short", (char *)0);
            _exit(2);
        }
        int status;
        CHECK(waitpid(child, &status, 0) == child);
        CHECK_EQUAL(status, 7 << 8);
        CHECK(denied() && getuid() == 65534);
        CHECK_EQUAL(prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0), 0);
        // Without a privilege and without no_new_privs there are no further ones.
        CHECK(FILTER(0, OTHERWISE(SECCOMP_RET_ALLOW)) < 0 && errno == EACCES);
    } while (go_on());
    PASS();
}
