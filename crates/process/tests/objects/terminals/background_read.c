// object: a job that reads from its terminal in the background and is stopped for it (SIGTTIN), let go on in the foreground
// status: captured
#include "terminal.h"

int main(void) {
    struct pair pair = open_pair();
    if (fork() == 0) {
        setsid();
        int tty = open(pair.name, O_RDWR);
        signal(SIGTTOU, SIG_IGN);
        pid_t job = fork();
        if (job == 0) {
            setpgid(0, 0);
            signal(SIGTTOU, SIG_DFL);
            for (;;) {
                char bytes[64];
                ssize_t got = read(tty, bytes, sizeof bytes);
                if (got > 0) put(tty, bytes, got);
            }
        }
        setpgid(job, job);
        for (;;) {
            int status;
            pid_t got = waitpid(job, &status, WUNTRACED);
            if (got < 0 && errno == EINTR) continue;
            CHECK_EQUAL(got, job);
            CHECK(WIFSTOPPED(status));
            CHECK_EQUAL(WSTOPSIG(status), WSTOPSIG(status) == SIGTSTP ? SIGTSTP : SIGTTIN);
            CHECK(!tcsetpgrp(tty, getpgrp()));
            usleep(10000);
            CHECK(!tcsetpgrp(tty, job));
            CHECK(!kill(-job, SIGCONT));
        }
    }
    set_local(pair.slave, ECHO, 0);
    ready();
    unsigned round = 0;
    int more;
    do {
        char line[32];
        int length = snprintf(line, sizeof line, "%u\n", round++);
        put(pair.master, line, length);
        line[length - 1] = '\r';
        line[length] = '\n';
        expect(pair.master, line, length + 1);
        // Stopped from the keyboard (^Z), and let go on by its leader.
        more = go_on();
        put(pair.master, "\x1a", 1);
        usleep(30000);
    } while (more);
    PASS();
}
