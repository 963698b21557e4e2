// object: filters of the program's own (`seccomp`, `prctl(PR_SET_SECCOMP)`), put one on another while captured; calls that kill
// status: captured
// note: one that asks a tracer (SECCOMP_RET_TRACE) is refused; the strict mode is hidden
#include "object.h"
#include "seccomp.h"
#include <poll.h>
#include <sys/mman.h>
#include <sys/wait.h>

static int *beats;

// Forbids all but a few calls by death, `restart_syscall` among them, which a stop of others makes necessary.
static void last_filter(void) {
    if (FILTER(0, IF_CALL(SYS_read, SECCOMP_RET_ALLOW), IF_CALL(SYS_write, SECCOMP_RET_ALLOW),
        IF_CALL(SYS_poll, SECCOMP_RET_ALLOW), IF_CALL(SYS_clock_nanosleep, SECCOMP_RET_ALLOW),
        IF_CALL(SYS_exit_group, SECCOMP_RET_ALLOW), IF_CALL(SYS_getppid, SECCOMP_RET_ALLOW),
        IF_CALL(SYS_getuid, SECCOMP_RET_ALLOW), IF_CALL(SYS_rt_sigreturn, SECCOMP_RET_ALLOW),
        OTHERWISE(SECCOMP_RET_KILL_PROCESS)))
        _exit(17);
}

static void sandboxed(int kills) {
    struct sock_filter code[] = {LOAD_CALL, IF_CALL(SYS_getppid, WITH_ERROR(77)), OTHERWISE(SECCOMP_RET_ALLOW)};
    struct sock_fprog program = {sizeof code / sizeof *code, code};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program)) _exit(10);
    for (int step = 0;; step++) {
        errno = 0;
        if (syscall(SYS_getppid) != -1 || errno != 77) _exit(11);
        errno = 0;
        long got = syscall(SYS_getuid);
        if (step < 5 ? got != 0 : got != -1 || errno != 78) _exit(12);
        if (step == 4 && FILTER(SECCOMP_FILTER_FLAG_LOG, IF_CALL(SYS_getuid, WITH_ERROR(78)), OTHERWISE(SECCOMP_RET_ALLOW))) _exit(13);
        if (step == 8 && kills) last_filter();
        // A wait that ends by its limit only, of both kinds.
        double begun = now();
        if (poll(0, 0, 3)) _exit(14);
        struct timespec rest = {0, 2000000};
        if (clock_nanosleep(CLOCK_MONOTONIC, 0, &rest, 0)) _exit(15);
        if (now() - begun < 0.0049) _exit(16);
        __atomic_add_fetch(&beats[kills], 1, __ATOMIC_SEQ_CST);
    }
}

int main(void) {
    beats = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    pid_t children[2];
    for (int kills = 0; kills < 2; kills++) {
        children[kills] = fork();
        if (!children[kills]) sandboxed(kills);
    }
    while (beats[0] < 2 || beats[1] < 2) CHECK(go_on());
    ready();
    do {
        int status = 0;
        pid_t gone = waitpid(-1, &status, WNOHANG);
        if (gone) FAIL("the sandboxed process %d ended with %x", gone == children[1], status);
        CHECK(getppid() >= 0 && prctl(PR_GET_SECCOMP) == 2);
    } while (go_on());
    int before[2] = {beats[0], beats[1]};
    for (int rest = 0; rest < 2000 && (beats[0] < before[0] + 3 || beats[1] < before[1] + 3); rest++) usleep(5000);
    CHECK(beats[0] >= before[0] + 3 && beats[1] >= before[1] + 3);
    int status = 0;
    CHECK_EQUAL(waitpid(-1, &status, WNOHANG), 0);
    PASS();
}
