// object: a daemon that was forked twice, made while protected
// status: captured
// note: one that was there before the first copy, and whose parents are gone, is in a session and group of its own afterwards
#include "object.h"
#include <sys/wait.h>

int main(void) {
    int ends[2], back[2];
    CHECK(!pipe(ends) && !pipe(back));
    ready();
    usleep(150000);
    pid_t middle = fork();
    if (!middle) {
        setsid();
        if (fork()) _exit(0);
        int pid = getpid();
        while (getppid() != 1) usleep(100);
        for (char byte; read(ends[0], &byte, 1) == 1;) {
            if (getpid() != pid || getppid() != 1) _exit(1);
            if (write(back[1], &byte, 1) != 1) _exit(1);
        }
        _exit(0);
    }
    CHECK_EQUAL(waitpid(middle, 0, 0), middle);
    close(back[1]);
    for (char byte = 1, got; go_on(); byte++) {
        CHECK(write(ends[1], &byte, 1) == 1);
        CHECK(read(back[0], &got, 1) == 1 && got == byte);
    }
    PASS();
}
