/* Preloaded: a disk that does not come back from a sync while the file named by HANG_FILE is there. */
#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

static void hang(void) {
    const char *file = getenv("HANG_FILE");
    while (file != NULL && access(file, F_OK) == 0)
        usleep(20000);
}

int fsync(int fd) {
    hang();
    return syscall(SYS_fsync, fd);
}

int fdatasync(int fd) {
    hang();
    return syscall(SYS_fdatasync, fd);
}
